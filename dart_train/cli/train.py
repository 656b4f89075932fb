"""`python -m dart_train train recipe.yaml key=value ... [--dry-run]`, and the same behind every launcher."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config import load_recipe

if TYPE_CHECKING:
    from ..training.run import TrainResult

# Exit codes. A launcher that was told to stop itself ends with one of its own.
WRONG = 2  # the recipe, the data or the folder: nothing was begun
BAD_STEP = 3  # a loss or gradient that is no number, and train.on_nan: stop
NOT_SAVED = 4  # a checkpoint could not be written, and train.on_save_error: stop
# 5, from .peers: another rank is gone or silent
STOPPED = 75  # asked to by SIGTERM or SIGUSR1: a checkpoint is written, the same command goes on
_CODES = "exit codes: 0 done, 2 refused, 3 bad step, 4 checkpoint not written, 5 a rank lost, 75 stopped as asked"
_GRACE_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_intermixed_args(argv)  # options may stand anywhere
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their authors
    try:
        recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
        if options.dry_run:
            from ..training.dry_run import describe

            print(describe(recipe))
            return 0
        from ..training.run import run

        outcome = run(recipe, options.force)
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if os.environ.get("DART_TRAIN_DEBUG") == "1":
            raise
        return _tell(error)
    except RuntimeError as error:
        return _lost(error)
    return _told(outcome)


def _told(outcome: TrainResult) -> int:
    if _rank() == 0:
        done = f"{outcome.steps} steps done" if outcome.stopped is None else f"stopped at step {outcome.steps}"
        why = "" if outcome.stopped is None else f" ({outcome.stopped}); the same command goes on"
        print(f"train: {done}{why}; the newest checkpoint is {outcome.checkpoint}", flush=True)
    return 0 if outcome.stopped is None else STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train train", description="Fine-tune with the reduction on.", epilog=_CODES
    )
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.learning_rate=1e-4")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be trained, and stop")
    parser.add_argument("--force", action="store_true", help="go on though recipe, base model or versions changed")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers'
    return parser


def _tell(error: Exception) -> int:
    """Once. What every rank knows, the first says. Of what may be one rank's alone: the others give the first one time
    to say it, and are ended with it by their launcher; where the first has nothing to say, they do."""
    from ..training.checkpointing import CheckpointWriteError
    from ..training.nonfinite import NonFiniteStepError

    rank, shared = _rank(), isinstance(error, NonFiniteStepError | CheckpointWriteError)
    if rank and not shared:
        time.sleep(_GRACE_SECONDS)
    if not (rank and shared):
        print(f"train{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
    return (
        BAD_STEP
        if isinstance(error, NonFiniteStepError)
        else NOT_SAVED
        if isinstance(error, CheckpointWriteError)
        else WRONG
    )


def _lost(error: RuntimeError) -> int:
    from ..training.liveness import LOST, LostRankError

    if not isinstance(error, LostRankError):
        raise error
    if error.reports:
        print(f"train (rank {_rank()}): {error}", file=sys.stderr, flush=True)
    return LOST


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
