"""One stage from its first step to its last; what was saved on the way is taken up again."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from .lessons import lesson
from .model import Workshop
from .recipe import Base, Stage
from .stages import Stages


def learn(name: str, stage: Stage, recipe: Base, workshop: Workshop, stages: Stages, offset: int) -> None:
    """Nothing to do where the stage is finished: then its weights are loaded."""
    folder = Path(recipe.work_dir)
    done, partly = folder / f"{name}.pt", folder / f"{name}.partly.pt"
    if done.exists():
        workshop.load_state_dict(torch.load(done, weights_only=True))
        return
    weights = stages.learning(name)
    workshop.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(_groups(weights, stage), lr=stage.learning_rate, betas=(0.9, 0.98))
    first = _take_up(partly, workshop, optimizer)
    loss_of, shown, loss_shown = stages.loss(name, stage), 0.0, math.nan
    bar = tqdm(range(first, stage.steps), initial=first, total=stage.steps, desc=name, unit=" steps", mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate * _share(step, stage)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            loss, right = loss_of(lesson(recipe, stage, step, offset))
        loss.backward()
        clip_grad_norm_(weights, stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shown = right if step == first else 0.95 * shown + 0.05 * right
        loss_shown = float(loss.detach()) if step == first else 0.95 * loss_shown + 0.05 * float(loss.detach())
        bar.set_postfix(loss=f"{loss_shown:.4f}", right=f"{shown:.3f}", refresh=False)
        if (step + 1) % recipe.save_steps == 0:
            _save({"workshop": workshop.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partly)
    _save(workshop.state_dict(), done)
    partly.unlink(missing_ok=True)


def _groups(weights: list[torch.nn.Parameter], stage: Stage) -> list[dict[str, object]]:
    """Matrices decay, norms and biases do not."""
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def _share(step: int, stage: Stage) -> float:
    """Of the learning rate: up in a line, down in half a cosine to a twentieth."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    passed = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, passed)))


def _take_up(partly: Path, workshop: Workshop, optimizer: torch.optim.Optimizer) -> int:
    if not partly.exists():
        return 0
    saved = torch.load(partly, weights_only=True)
    workshop.load_state_dict(saved["workshop"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _save(state: dict[str, object], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".writing")
    torch.save(state, part)
    os.replace(part, path)
