"""The train verb: `train(recipe)`, `python -m dart_train train RECIPE`, `deepspeed launch/train.py RECIPE`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Recipe
    from .run import TrainResult


def train(recipe: Recipe | str | Path, overrides: Iterable[str] = (), force: bool = False) -> TrainResult:
    """Fine-tunes as the recipe (or the file of one) says; resumes by itself where its run folder holds a whole
    checkpoint. overrides: such as `train.max_steps=10`. force: goes on though recipe, base model or versions are others
    than when that one was written. SIGTERM and SIGUSR1 end it behind the step, with a checkpoint, and come back as the
    outcome's `stopped`: what they mean for the rest of the program is the caller's."""
    from ..config import Recipe as Read
    from ..config import load_recipe
    from .run import run

    if isinstance(recipe, Read):
        if tuple(overrides):
            raise ValueError("overrides are for a recipe in a file; this one is read already")
        return run(recipe, force)
    return run(load_recipe(recipe, overrides, needs=("data.train",)), force)


__all__ = ["train"]
