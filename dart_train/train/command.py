"""`python -m dart_train train recipe.yaml key=value ... [--dry-run]`, and the same behind every launcher."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

from ..recipe import load_recipe

WRONG = 2
_GRACE_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their authors
    try:
        recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
        if options.dry_run:
            from .dryrun import describe

            print(describe(recipe))
            return 0
        from .run import run

        outcome = run(recipe)
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if os.environ.get("DART_TRAIN_DEBUG") == "1":
            raise
        _tell(error)
        return WRONG
    if _rank() == 0:
        print(f"train: {outcome.steps} steps done; the newest checkpoint is {outcome.checkpoint}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train train", description="Fine-tune with the reduction on.")
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.learning_rate=1e-4")
    parser.add_argument("--dry-run", action="store_true", help="tell what would be trained, and stop")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers'
    return parser


def _tell(error: Exception) -> None:
    """Once: the other ranks give the first one time to say it, and are ended with it by their launcher. Where the
    first has nothing to say, they do."""
    rank = _rank()
    if rank:
        time.sleep(_GRACE_SECONDS)
    print(f"train{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
