"""Where a run starts: at the beginning, or behind the newest whole checkpoint of its folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ..checkpoint import MARK, Damaged, newest_whole, problems, steps_of
from ..recipe import Recipe
from .changes import check_unchanged
from .harmless import check_harmless
from .ranks import Ranks
from .zero import deepspeed_config, stage_of

log = logging.getLogger(__name__)


def start_from(recipe: Recipe, ranks: Ranks, force: bool = False) -> tuple[Path | None, list[Damaged]]:
    """The checkpoint to go on from, None for a fresh start, and those that were passed over. `force`: what is
    otherwise than it was when the checkpoint was written is told and accepted."""
    found, passed = _choose(recipe)
    if found is not None:
        if ranks.rank == 0:
            check_harmless(found)
        _check_spread(found, recipe, ranks)
        for changed in check_unchanged(found, recipe, force):
            if ranks.rank == 0:
                log.warning("going on from %s, though otherwise: %s", found.name, changed)
    return found, passed


def _choose(recipe: Recipe) -> tuple[Path | None, list[Damaged]]:
    run, resume = Path(recipe.train.output_dir), recipe.train.resume
    if resume == "auto":
        return newest_whole(run)
    if resume == "never":
        found, _ = newest_whole(run)
        if found is not None:
            raise ValueError(
                f"train.resume: never, but {run} holds {found.name}, which would be overwritten; "
                "choose another train.output_dir, or resume: auto"
            )
        return None, []
    folder = Path(resume)
    why = problems(folder) if folder.is_dir() else "there is no such folder"
    if why is not None:
        raise ValueError(f"train.resume: {resume} cannot be resumed from: {why}")
    steps_of(folder)
    return folder, []


def _check_spread(folder: Path, recipe: Recipe, ranks: Ranks) -> None:
    """The optimizer's state lies in pieces that fit one number of ranks and one stage."""
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    here = spread(recipe, ranks)
    differs = [f"{name} {mark[name]}, here {here[name]}" for name in here if mark.get(name, here[name]) != here[name]]
    if differs:
        raise ValueError(
            f"{folder} was written with {' and '.join(differs)}; the optimizer's state lies in pieces that fit only "
            "that. Start as it was started, or begin a new run from its weights: "
            f"python -m dart_train export {folder} --out FOLDER, then model.path=FOLDER and another "
            "train.output_dir. Nothing was touched"
        )


def spread(recipe: Recipe, ranks: Ranks) -> dict[str, int | None]:
    """How the state of a run is spread; stage None: without DeepSpeed, where it is whole."""
    deepspeed = ranks.uses_deepspeed(recipe.train)
    return {"ranks": ranks.world, "stage": stage_of(deepspeed_config(recipe.train)) if deepspeed else None}
