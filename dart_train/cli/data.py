"""`python -m dart_train data check recipe.yaml`, or `--rows FILE --images FOLDER` where there is no recipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import load_recipe
from ..data.check import check_rows
from ..data.check_report import as_text
from ..data.encoder import Encoder
from ..data.images import ImageStore
from ..data.sources import DataSource, SourceSpec, open_sources
from ..data.truncation import POLICIES
from ..models.processors import load_processor


def main(argv: Sequence[str]) -> int:
    """`argv` begins with `check`. 0: no errors in the rows, 1: some, 2: the call itself is wrong."""
    options = _parser().parse_args(argv)
    try:
        result = _check(options)
    except ValueError as error:
        print(f"data check: {error}", file=sys.stderr)
        return 2
    text = as_text(result)
    print(text.encode(errors="backslashreplace").decode())  # rows may hold anything, a terminal may not
    print(f"\nwritten: {options.out / 'check.json'}, and every finding by row in check_rows.jsonl beside it")
    return 1 if result["errors"] or result["too_many_dropped"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train data", description="Look at training data.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("check", help="read every row, without a model; exit 1 when there are errors")
    verb.add_argument("recipe", nargs="?", help="recipe.yaml; its data.train and data.validation are read")
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    verb.add_argument("--rows", help="a file, folder or hub id of rows, instead of a recipe")
    verb.add_argument("--images", help="the folder that image names start from (default: beside the rows)")
    verb.add_argument("--model", help="folder of a model or processor: measures tokens (default: the recipe's)")
    verb.add_argument("--max-length", type=int, help="with --rows: the length limit in tokens")
    verb.add_argument("--on-too-long", choices=POLICIES, default="drop", help="with --rows: what the limit does")
    verb.add_argument("--allow-urls", action="store_true", help="with --rows: read images over http(s)")
    verb.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    verb.add_argument("--out", type=Path, default=Path(), help="folder for check.json (default: this one)")
    verb.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def _check(options: argparse.Namespace) -> dict[str, Any]:
    if bool(options.recipe) == bool(options.rows):
        raise ValueError("give either a recipe, or --rows FILE with --images FOLDER")
    sources, encoder, reducers, limit = _of_recipe(options) if options.recipe else _of_rows(options)
    return check_rows(sources, encoder, reducers, max(1, options.workers), options.out, not options.quiet, limit)


def _of_rows(options: argparse.Namespace) -> tuple[list[DataSource], Encoder | None, Sequence[Any], float | None]:
    store = ImageStore(allow_urls=options.allow_urls)
    sources = open_sources([SourceSpec(options.rows, options.images)], store)
    if options.model is None:
        return sources, None, (), None
    return sources, Encoder(_processor(options.model), options.max_length, options.on_too_long), (), None


def _of_recipe(options: argparse.Namespace) -> tuple[list[DataSource], Encoder | None, Sequence[Any], float | None]:
    recipe = load_recipe(options.recipe, options.overrides, needs=("data.train",))
    data = recipe.data
    store = ImageStore(None, data.allow_urls, data.max_pixels, data.min_pixels)
    sources = open_sources([*data.train, *data.validation], store)
    try:
        processor = _processor(options.model or recipe.model.path)
    except ValueError as error:
        if options.model is not None:
            raise
        print(f"data check: tokens are not measured: {error}", file=sys.stderr)  # its model may be out of reach here
        return sources, None, recipe.reduction.reducers(), data.max_bad_fraction
    encoder = Encoder(processor, data.max_length, data.on_too_long)
    return sources, encoder, recipe.reduction.reducers(), data.max_bad_fraction


def _processor(path: str) -> Any:
    try:
        return load_processor(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"no processor at {path!r}: {error}") from error
