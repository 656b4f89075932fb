"""The training that a recipe's `train.method` names."""

from __future__ import annotations

from ..config import Recipe
from .run import TrainResult, run


def start(recipe: Recipe, force: bool = False) -> TrainResult:
    """Trains, on every rank of the run. Raises as `run` does."""
    if recipe.train.method == "sft":
        return run(recipe, force)
    from .preference.run import run_preference

    return run_preference(recipe, force)


def describe(recipe: Recipe) -> str:
    """`--dry-run`: what would be trained, without reading a weight."""
    if recipe.train.method == "sft":
        from .dry_run import describe as describe_sft

        return describe_sft(recipe)
    from .preference.run import describe as describe_preference

    return describe_preference(recipe)
