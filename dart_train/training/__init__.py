"""Training: `train(recipe)`, `python -m dart_train train RECIPE`, `deepspeed launch/train.py RECIPE`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..config import Recipe
    from .run import TrainResult


def train(recipe: Recipe | str | Path, overrides: Iterable[str] = (), force: bool = False) -> TrainResult:
    """Fine-tunes a model as the recipe, or the recipe file, states. Resumes from the newest complete checkpoint of its
    run folder.

    overrides: for a recipe file, such as `train.max_steps=10`. force: resume although recipe, base model or versions
    changed since that checkpoint was written. SIGTERM and SIGUSR1 end the training after the current step with a
    checkpoint, and the result has `stopped`; the rest of the program continues."""
    from ..config import Recipe as RecipeClass
    from ..config import load_recipe
    from .start import start

    if isinstance(recipe, RecipeClass):
        if tuple(overrides):
            raise ValueError("overrides apply to a recipe file, but a Recipe was given; change the Recipe instead")
        return start(recipe, force)
    return start(load_recipe(recipe, overrides, needs=("data.train",)), force)


__all__ = ["train"]
