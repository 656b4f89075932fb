"""The training that a recipe's `train.method` names."""

from __future__ import annotations

import sys

from ..common.distributed import RankInfo
from ..config import Recipe
from .hub_upload import upload_run
from .run import TrainResult, run


def start(recipe: Recipe, force: bool = False) -> TrainResult:
    """Trains, on every rank of the run. Raises as `run` does."""
    if recipe.train.method == "sft":
        result = run(recipe, force)
    else:
        from .preference.run import run_preference

        result = run_preference(recipe, force)
    if recipe.train.push_to_hub is not None and result.stopped is None and RankInfo.read().rank == 0:
        place = upload_run(recipe)
        if place is not None:
            print(f"train: uploaded to {place}", file=sys.stderr, flush=True)
    return result


def describe(recipe: Recipe) -> str:
    """`--dry-run`: what would be trained, without reading a weight."""
    if recipe.train.method == "sft":
        from .dry_run import describe as describe_sft

        return describe_sft(recipe)
    from .preference.run import describe as describe_preference

    return describe_preference(recipe)
