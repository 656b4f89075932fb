"""`python -m dart_train base recipe.yaml key=value ...`: train the small base model from random weights.

The training code is in the repository, data/tiny_base/train, with the images that it draws; it is not in the wheel."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_IN_CHECKOUT = (
    "base: the training code of the base model (data/tiny_base/train) is in the repository and not in the installed "
    "package. Clone the repository and run this command in its folder"
)


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    command = _import_command()
    if command is None:
        print(NOT_IN_CHECKOUT, file=sys.stderr)
        return 2
    recipe = command.load_base(options.recipe, options.overrides)
    command.train(recipe, options.until)
    if options.until is None:
        command.evaluate(recipe, options.recipe)
    return 0


def _import_command() -> ModuleType | None:
    """data.tiny_base.train.command of the checkout that this package or the working folder is in, or None."""
    if (CHECKOUT / "data" / "tiny_base" / "train").is_dir() and str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    try:
        return importlib.import_module("data.tiny_base.train.command")
    except ModuleNotFoundError as error:
        if error.name is not None and "data.tiny_base.train".startswith(error.name):
            return None
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dart_train base", description="Train a small base model on drawn shapes, from random weights."
    )
    parser.add_argument("recipe", help="recipe.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as stages.joint.steps=100")
    parser.add_argument("--until", choices=("vision", "language", "projector", "joint"), help="the last stage to train")
    return parser
