"""`python -m dart_train plan recipe.yaml`: will it pay?"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ..config import load_recipe
from ..planning.predict import ROWS, SECONDS, predict
from ..planning.report import Plan, read_run_figures


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, to their authors
    recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
    plan = predict(
        recipe,
        timing=not options.no_timing,
        device=options.device,
        ranks=options.ranks,
        rows=options.rows,
        seconds=options.seconds,
        name=Path(options.recipe).stem,
    )
    print(plan)
    if options.beside is not None:
        _compare_with_run(plan, options.beside)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "plan.json"
        file.write_text(json.dumps(plan.to_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"written: {file}", file=sys.stderr)
    return 0


def _compare_with_run(plan: Plan, run: Path) -> None:
    actual = read_run_figures(run)
    print("\n" + plan.compare_with_run(actual))
    file = run / "plan_vs_actual.json"
    file.write_text(json.dumps(plan.predicted_vs_actual(actual), indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train plan",
        description="Predict step time, memory and tokens of a recipe, with and without its reduction.",
    )
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as reduction.keep=64")
    parser.add_argument("--no-timing", action="store_true", help="bounds from FLOPs only; runs nothing")
    parser.add_argument("--device", help="what to time on (default: the GPU where there is one)")
    parser.add_argument("--ranks", type=_positive, help="processes of the run (default: those of this launcher)")
    parser.add_argument("--rows", type=_whole, default=ROWS, help=f"rows to look at, 0 for all ({ROWS})")
    parser.add_argument("--seconds", type=_some, default=SECONDS, help=f"for each timed call ({SECONDS:g})")
    parser.add_argument("--beside", type=Path, metavar="RUN", help="a finished run's folder: predicted and actual")
    parser.add_argument("--out", type=Path, help="folder for plan.json")
    return parser


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} given, a whole number >= 0 expected")
    return number


def _positive(text: str) -> int:
    number = _whole(text)
    if not number:
        raise argparse.ArgumentTypeError("0 given, at least 1 expected")
    return number


def _some(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} given, more than 0 expected")
    return number
