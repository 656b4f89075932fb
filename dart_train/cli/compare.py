"""`python -m dart_train compare recipe.yaml key=value ...`, and the same behind every launcher."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

WRONG = 2
_GRACE_SECONDS = 30.0


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their authors
    try:
        from ..evaluation.comparison import compare
        from ..evaluation.comparison_grid import open_recipe

        results = compare(open_recipe(options.recipe, options.overrides, int(os.environ.get("RANK", 0)) == 0))
    except (ValueError, NotImplementedError, OSError, ImportError) as error:
        if os.environ.get("DART_TRAIN_DEBUG") == "1":
            raise
        _tell(error)
        return WRONG
    if results is not None:
        from ..evaluation.tables import quality_table

        for name in results.prepared.sets:
            print(f"\n{name}\n\n{quality_table(results.scores, name)}")
        print(f"\ncompare: {len(results.records)} answers; the report is {results.folder / 'report.html'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train compare", description="Ask, time and compare checkpoints, methods and budgets."
    )
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as compare.budgets=[64,0.111]")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)  # launchers'
    return parser


def _tell(error: Exception) -> None:
    """Once: the first rank, unless it has nothing to say while others do."""
    rank = int(os.environ.get("RANK", 0))
    if rank:
        time.sleep(_GRACE_SECONDS)
    print(f"compare{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr, flush=True)
