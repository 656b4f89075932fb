"""The training loop of one stage. Its state is saved on the way, and a new start resumes from it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .model import TrainedParts
from .recipe import LanguageStage, ProjectorStage, RealRecipe

StepLoss = Callable[[int], tuple[Tensor, float]]  # of a step: the loss, and an accuracy for the progress bar
SMOOTHING = 0.05


def train_stage(
    name: str,
    stage: ProjectorStage | LanguageStage,
    recipe: RealRecipe,
    parts: TrainedParts,
    groups: list[tuple[list[nn.Parameter], float]],
    loss_of: StepLoss,
    validate: Callable[[], dict[str, float]],
) -> None:
    """Train one stage, or load its weights if it is finished. groups: weights and their learning rates.

    `steps` and `decay` of a stage that has not reached them may be changed between two starts; other settings not."""
    folder = Path(recipe.work_dir)
    finished, partial = folder / f"{name}.pt", folder / f"{name}.partly.pt"
    if finished.exists():
        parts.load_trained_state(_load(finished, recipe, name)["weights"])
        return
    parts.requires_grad_(False)
    for weights, _ in groups:
        for weight in weights:
            weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [{"params": weights, "lr": rate} for weights, rate in groups], betas=(0.9, 0.98), weight_decay=0.01
    )
    first = 0
    if partial.exists():
        saved = _load(partial, recipe, name)
        parts.load_trained_state(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        first = int(saved["step"])
    mean_loss, mean_right = None, None
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=name, unit=" steps", mininterval=5)
    for step in bar:
        loss, right = loss_of(step)
        factor = _factor(step, stage)
        for group, (_, rate) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * factor
        loss.backward()
        clip_grad_norm_([weight for weights, _ in groups for weight in weights], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = float(loss.detach())
        mean_loss = value if mean_loss is None else mean_loss + SMOOTHING * (value - mean_loss)
        mean_right = right if mean_right is None else mean_right + SMOOTHING * (right - mean_right)
        bar.set_postfix({"loss": f"{mean_loss:.3f}", "right": f"{mean_right:.3f}"}, refresh=False)
        if (step + 1) % recipe.save_steps == 0:
            state = {"optimizer": optimizer.state_dict(), "step": step + 1}
            _save(partial, recipe, name, parts, **state)
            entry = {"stage": name, "step": step + 1, "loss": mean_loss, "right": mean_right, **validate()}
            _log(folder / "log.jsonl", entry)
    _save(finished, recipe, name, parts)
    partial.unlink(missing_ok=True)


def _factor(step: int, stage: ProjectorStage | LanguageStage) -> float:
    """Of the learning rate: linear warmup, constant, and linear to 0 in the last `decay` steps."""
    up = (step + 1) / stage.warmup if step < stage.warmup else 1.0
    left = stage.steps - step
    return min(up, left / (stage.decay + 1)) if left <= stage.decay else up


def _log(path: Path, entry: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**entry, "cpu_seconds": round(time.process_time())}) + "\n")


def _decisive(recipe: RealRecipe, name: str) -> Any:
    """The settings that the weights depend on."""
    stage = {
        key: value for key, value in getattr(recipe.stages, name).model_dump().items() if key not in ("steps", "decay")
    }
    return {"stage": stage, "pictures": recipe.pictures.model_dump(), "adapter": recipe.adapter.model_dump()}


def _load(path: Path, recipe: RealRecipe, name: str) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    if saved["recipe"] != _decisive(recipe, name):
        raise ValueError(f"{path} was trained with another recipe: set work_dir to another folder, or delete this file")
    return saved


def _save(path: Path, recipe: RealRecipe, name: str, parts: TrainedParts, **more: object) -> None:
    """The file is complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".writing")
    torch.save({"weights": parts.trained_state(), "recipe": _decisive(recipe, name), **more}, unfinished)
    os.replace(unfinished, path)
