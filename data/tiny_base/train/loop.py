"""The training loop of one stage. Its state is saved on the way, and a new start resumes from it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .model import TrainingBundle
from .recipe import BaseRecipe, Measure, Stage
from .samples import scene_batch
from .stages import StageLosses

SMOOTHING = 0.05  # weight of the last step in the loss and accuracy of the progress bar


@dataclass
class MovingAverages:
    """Exponential moving averages of loss and accuracy for the progress bar."""

    loss: float = math.nan
    accuracy: float = math.nan

    def update(self, loss: float, accuracy: float) -> dict[str, str]:
        first = math.isnan(self.loss)
        self.loss = loss if first else (1 - SMOOTHING) * self.loss + SMOOTHING * loss
        self.accuracy = accuracy if first else (1 - SMOOTHING) * self.accuracy + SMOOTHING * accuracy
        return {"loss": f"{self.loss:.4f}", "right": f"{self.accuracy:.3f}"}


def train_stage(
    name: str, stage: Stage, recipe: BaseRecipe, bundle: TrainingBundle, losses: StageLosses, offset: int
) -> None:
    """Train one stage, or load its weights if it is finished. offset: the index of its first scene."""
    finished, partial = (Path(recipe.work_dir) / f"{name}{ending}.pt" for ending in ("", ".partly"))
    if finished.exists():
        bundle.load_state_dict(_load(finished, recipe)["bundle"])
        return
    weights = losses.trained(name)
    bundle.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(_parameter_groups(weights, stage), lr=stage.learning_rate, betas=(0.9, 0.98))
    first = _resume(partial, recipe, bundle, optimizer)
    loss_of, averages = losses.loss(name, stage), MovingAverages()
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=name, unit=" steps", mininterval=2)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss, accuracy = loss_of(scene_batch(recipe, stage, step, offset))
        _optimize(loss, optimizer, stage.learning_rate * _schedule(step, stage), stage.max_grad_norm)
        bar.set_postfix(averages.update(float(loss.detach()), accuracy), refresh=False)
        if (step + 1) % recipe.save_steps == 0:
            _save(partial, recipe, bundle, optimizer=optimizer.state_dict(), step=step + 1)
    _save(finished, recipe, bundle)
    partial.unlink(missing_ok=True)


def _parameter_groups(weights: list[nn.Parameter], stage: Stage) -> list[dict[str, object]]:
    """Weight decay for matrices, none for norms and biases."""
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def _optimize(loss: Tensor, optimizer: torch.optim.Optimizer, learning_rate: float, max_grad_norm: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    loss.backward()
    clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _schedule(step: int, stage: Stage) -> float:
    """The factor of the learning rate: linear warmup, then half a cosine down to 0.05."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _resume(partial: Path, recipe: BaseRecipe, bundle: TrainingBundle, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of an interrupted stage; the step to continue with."""
    if not partial.exists():
        return 0
    saved = _load(partial, recipe)
    bundle.load_state_dict(saved["bundle"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _load(path: Path, recipe: BaseRecipe) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved["recipe"] != _decisive(recipe) or "bundle" not in saved:
        raise ValueError(f"{path} was trained with another recipe: set work_dir to another folder, or delete this file")
    return saved


def _save(path: Path, recipe: BaseRecipe, bundle: TrainingBundle, **more: object) -> None:
    """The file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".writing")
    torch.save({"bundle": bundle.state_dict(), "recipe": _decisive(recipe), **more}, unfinished)
    os.replace(unfinished, path)


def _decisive(recipe: BaseRecipe) -> Any:
    """The settings that the weights depend on."""
    return recipe.model_copy(
        update={"measure": Measure(), "output_dir": "-", "work_dir": "-", "save_steps": 1}
    ).to_dict()
