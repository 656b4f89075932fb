"""One stage from its first step to its last; what was saved on the way is taken up again."""

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
from .recipe import Base, Measure, Stage
from .samples import lesson
from .stages import Stages

PACE = 0.05  # how fast the shown loss and accuracy follow the last step


@dataclass
class Progress:
    """Loss and accuracy as the bar shows them: averages that forget."""

    loss: float = math.nan
    right: float = math.nan

    def follow(self, loss: float, right: float) -> dict[str, str]:
        first = math.isnan(self.loss)
        self.loss = loss if first else (1 - PACE) * self.loss + PACE * loss
        self.right = right if first else (1 - PACE) * self.right + PACE * right
        return {"loss": f"{self.loss:.4f}", "right": f"{self.right:.3f}"}


def learn(name: str, stage: Stage, recipe: Base, workshop: TrainingBundle, stages: Stages, offset: int) -> None:
    """offset: the first scene. Nothing to do where the stage is finished: then its weights are loaded."""
    done, partly = (Path(recipe.work_dir) / f"{name}{ending}.pt" for ending in ("", ".partly"))
    if done.exists():
        workshop.load_state_dict(_load(done, recipe)["workshop"])
        return
    weights = _only(workshop, stages.learning(name))
    optimizer = torch.optim.AdamW(_groups(weights, stage), lr=stage.learning_rate, betas=(0.9, 0.98))
    first = _take_up(partly, recipe, workshop, optimizer)
    loss_of, progress = stages.loss(name, stage), Progress()
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=name, unit=" steps", mininterval=2)
    for step in bar:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss, right = loss_of(lesson(recipe, stage, step, offset))
        _step(loss, optimizer, stage.learning_rate * _share(step, stage), stage.max_grad_norm)
        bar.set_postfix(progress.follow(float(loss.detach()), right), refresh=False)
        if (step + 1) % recipe.save_steps == 0:
            _save(partly, recipe, workshop, optimizer=optimizer.state_dict(), step=step + 1)
    _save(done, recipe, workshop)
    partly.unlink(missing_ok=True)


def _only(workshop: TrainingBundle, weights: list[nn.Parameter]) -> list[nn.Parameter]:
    """`weights` learn, no others do."""
    workshop.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    return weights


def _groups(weights: list[nn.Parameter], stage: Stage) -> list[dict[str, object]]:
    """Matrices decay, norms and biases do not."""
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, longest: float) -> None:
    """longest: what the gradient of all weights together is cut to."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()
    clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], longest)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _share(step: int, stage: Stage) -> float:
    """Of the learning rate: up in a line, down in half a cosine to a twentieth."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    passed = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def _take_up(partly: Path, recipe: Base, workshop: TrainingBundle, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with."""
    if not partly.exists():
        return 0
    saved = _load(partly, recipe)
    workshop.load_state_dict(saved["workshop"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _load(path: Path, recipe: Base) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved["recipe"] != _decisive(recipe):
        raise ValueError(f"{path} was learned by another recipe: give work_dir another folder, or remove this one")
    return saved


def _save(path: Path, recipe: Base, workshop: TrainingBundle, **more: object) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".writing")
    torch.save({"workshop": workshop.state_dict(), "recipe": _decisive(recipe), **more}, part)
    os.replace(part, path)


def _decisive(recipe: Base) -> Any:
    """What the weights depend on."""
    return recipe.model_copy(
        update={"measure": Measure(), "output_dir": "-", "work_dir": "-", "save_steps": 1}
    ).to_dict()
