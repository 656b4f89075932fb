"""The commands before and during training: `train`, `plan` and `data check`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options as cli

if TYPE_CHECKING:
    from ..data.encoder import Encoder
    from ..data.sources import DataSource
    from ..planning import Plan

_EXIT_CODES = (
    "exit codes: 0 done, 2 refused, 3 NaN or Inf step, 4 checkpoint not written, 5 a rank lost, 75 stopped by a signal"
)
_ROWS, _SECONDS = 2000, 5.0  # of `plan`


@cli.reports_errors("train")
def train(argv: Sequence[str]) -> int:
    options = _train_parser().parse_intermixed_args(argv)  # options may be between overrides
    warnings.simplefilter("ignore", FutureWarning)  # of libraries; users cannot act on them
    from ..config import load_recipe

    recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
    if options.dry_run:
        from ..training.start import describe

        print(describe(recipe))
        return cli.OK
    from ..training.checkpointing import CheckpointWriteError
    from ..training.liveness import LostRankError
    from ..training.nonfinite import NonFiniteStepError
    from ..training.row_guard import UnusableRowsError
    from ..training.start import start

    try:
        result = start(recipe, options.force)
    except NonFiniteStepError as error:
        return cli.report_error("train", error, cli.BAD_STEP, on_all_ranks=True)
    except UnusableRowsError as error:
        return cli.report_error("train", error, on_all_ranks=True)
    except CheckpointWriteError as error:
        return cli.report_error("train", error, cli.NOT_SAVED, on_all_ranks=True)
    except LostRankError:  # the run has printed it
        return cli.RANK_LOST
    if cli.rank() == 0:
        if result.stopped is None:
            print(f"train: {result.steps} steps done; the newest checkpoint is {result.checkpoint}", flush=True)
        else:
            stopped = f"train: stopped at step {result.steps} ({result.stopped})"
            print(f"{stopped}. Run the same command to resume from {result.checkpoint}", flush=True)
    return cli.OK if result.stopped is None else cli.STOPPED


def _train_parser() -> argparse.ArgumentParser:
    parser = cli.parser_of("train", "Fine-tune with the reduction on.", epilog=_EXIT_CODES)
    cli.add_recipe(parser, "train.learning_rate=1e-4")
    parser.add_argument("--dry-run", action="store_true", help="print what would be trained, and exit")
    parser.add_argument("--force", action="store_true", help="resume although recipe, base model or versions changed")
    cli.add_launcher_arguments(parser)
    return parser


@cli.reports_errors("plan")
def plan(argv: Sequence[str]) -> int:
    options = _plan_parser().parse_args(argv)
    warnings.simplefilter("ignore", FutureWarning)
    from ..config import load_recipe

    recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
    from ..planning import predict

    predicted = predict(
        recipe,
        timing=not options.no_timing,
        device=options.device,
        ranks=options.ranks,
        rows=options.rows,
        seconds=options.seconds,
        name=Path(options.recipe).stem,
    )
    print(predicted)
    if options.compare_with is not None:
        _compare_with_run(predicted, options.compare_with)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        _write_json(options.out / "plan.json", predicted.to_dict())
    return cli.OK


def _compare_with_run(predicted: Plan, run: Path) -> None:
    from ..planning.report import read_run_figures

    actual = read_run_figures(run)
    print("\n" + predicted.compare_with_run(actual))
    _write_json(run / "plan_vs_actual.json", predicted.predicted_vs_actual(actual))


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {file}", file=sys.stderr)


def _plan_parser() -> argparse.ArgumentParser:
    what = "Predict step time, memory and tokens of a recipe, with and without its reduction."
    parser = cli.parser_of("plan", what)
    cli.add_recipe(parser, "reduction.keep=64")
    parser.add_argument("--no-timing", action="store_true", help="bounds from FLOPs only; runs nothing")
    parser.add_argument("--device", help="device to time on (default: the GPU if there is one)")
    parser.add_argument("--ranks", type=cli.positive_int, help="processes of the run (default: those of this launcher)")
    parser.add_argument("--rows", type=cli.not_negative_int, default=_ROWS, help=f"rows to read, 0 for all ({_ROWS})")
    parser.add_argument(
        "--seconds", type=cli.positive_float, default=_SECONDS, help=f"for each timed call ({_SECONDS:g})"
    )
    run = "folder of a finished run to compare the plan with; --beside is the former name"
    parser.add_argument("--compare-with", "--beside", type=Path, metavar="RUN", help=run)
    parser.add_argument("--out", type=Path, help="folder for plan.json")
    return parser


@cli.reports_errors("data check")
def data(argv: Sequence[str]) -> int:
    """`argv` begins with `check`."""
    options = _data_parser().parse_args(argv)
    if bool(options.recipe) == bool(options.rows):
        raise ValueError("give either a recipe, or --rows FILE with --images FOLDER")
    sources, encoder, reducers, limit, tolerance, checker = (
        _of_recipe(options) if options.recipe else (*_of_rows(options), None)
    )
    from ..data.check import check_rows
    from ..data.check_report import as_text

    workers, progress = max(1, options.workers), not options.quiet
    result = check_rows(sources, encoder, reducers, workers, options.out, progress, limit, tolerance, checker)
    print(as_text(result).encode(errors="backslashreplace").decode())  # rows may have characters a terminal has not
    print(f"\nwritten: {options.out / 'check.json'}, and the issues of each row in check_rows.jsonl next to it")
    return cli.FAILED if result["errors"] or result["too_many_dropped"] else cli.OK


_Rows = tuple["list[DataSource]", "Encoder | None", Sequence[Any], "float | None", "float | None"]
_RecipeRows = tuple["list[DataSource]", "Encoder | None", Sequence[Any], "float | None", "float | None", Any]


def _of_rows(options: argparse.Namespace) -> _Rows:
    from ..data.encoder import Encoder
    from ..data.images import ImageStore
    from ..data.sources import SourceSpec, open_sources

    sources = open_sources([SourceSpec(options.rows, options.images)], ImageStore(allow_urls=options.allow_urls))
    if options.model is None:
        return sources, None, (), None, None
    return sources, Encoder(_processor(options.model), options.max_length, options.on_too_long), (), None, None


def _of_recipe(options: argparse.Namespace) -> _RecipeRows:
    """Of DPO and GRPO with a checker of their rows."""
    from ..config import load_recipe

    recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
    from ..data.encoder import Encoder
    from ..data.images import ImageStore
    from ..data.sources import open_sources

    config, reducers, tower = recipe.data, recipe.reduction.reducers(), recipe.reduction.tower_stage()
    specs, store = [*config.train, *config.validation], ImageStore.from_config(config)
    checker: Any = None
    max_length: int | None = config.max_length
    if recipe.train.method != "sft":
        from ..training.preference.check import PreferenceChecker

        pairs, max_length = recipe.train.method == "dpo", None
        checker = partial(PreferenceChecker, pairs=pairs, max_length=config.max_length if pairs else None)
    try:
        processor = _processor(options.model or recipe.model.path, config.template_text())
    except ValueError as error:
        if options.model is not None:
            raise
        print(f"data check: tokens are not measured: {error}", file=sys.stderr)  # the model may be on another machine
        return open_sources(specs, store), None, reducers, config.max_bad_fraction, None, checker
    sources = open_sources(specs, store.leave_limits_to(processor))
    encoder = Encoder(processor, max_length, config.on_too_long)
    tolerance = None if tower is None or checker is not None else tower.tolerance  # counted on conversations
    return sources, encoder, reducers, config.max_bad_fraction, tolerance, checker


def _processor(path: str, template: str | None = None) -> Any:
    from ..models.processors import load_processor

    try:
        return load_processor(path, template=template)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at {path!r}: {error}") from error


def _data_parser() -> argparse.ArgumentParser:
    policies = ("drop", "error", "truncate_text")
    parser = cli.parser_of("data", "Check training data before a run.")
    check = parser.add_subparsers(dest="command", required=True).add_parser(
        "check", help="read every row, without a model; exit code 1 if there are errors"
    )
    check.add_argument("recipe", nargs="?", help="recipe.yaml; its data.train and data.validation are read")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    check.add_argument("--rows", help="a file, folder or hub id of rows, instead of a recipe")
    check.add_argument("--images", help="the folder that image names are relative to (default: that of the rows)")
    check.add_argument("--model", help="folder of a model or processor, to count tokens (default: the recipe's)")
    check.add_argument("--max-length", type=int, help="with --rows: the largest number of tokens of a sample")
    check.add_argument("--on-too-long", choices=policies, default="drop", help="with --rows: see data.on_too_long")
    check.add_argument("--allow-urls", action="store_true", help="with --rows: read images over http(s)")
    check.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    check.add_argument("--out", type=Path, default=Path(), help="folder for check.json (default: the working folder)")
    check.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser
