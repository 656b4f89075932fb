"""The options of commands that answer with a model: which one, its reduction, and where it runs."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import TYPE_CHECKING, Any

from . import options as cli

if TYPE_CHECKING:
    from ..checkpoints import Loaded

ATTENTION_HELP = "attn_implementation: sdpa, eager, flash_attention_2"
DEVICE_HELP = "cpu, cuda, cuda:1 (default: the GPU if there is one)"


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="an exported folder, a run, a checkpoint, the folder of any model, or a hub id")


def add_reduction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=cli.budget, help="visual tokens: 64, or 0.25 of them (default: as trained)")
    parser.add_argument("--method", help="another reduction, such as fastv (default: as trained)")
    parser.add_argument("--full", action="store_true", help="full tokens: no reduction")


def add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=cli.checkpoint, help="of a run: a step, newest or best")
    parser.add_argument("--base", help="path of an adapter's base model, if it was moved")
    parser.add_argument("--dtype", choices=cli.DTYPES, help="default: the dtype of the training")
    parser.add_argument("--attn", default="auto", help=ATTENTION_HELP)
    parser.add_argument("--device", help=DEVICE_HELP)


def model_problems(options: argparse.Namespace) -> list[str]:
    """Why the model cannot answer, before weights are read."""
    from ..checkpoints import resolve
    from ..models.prompts import prompt_problems

    try:
        return prompt_problems(resolve(options.path, _reducer(options), **_location(options)).processor)
    except ValueError as error:
        return [str(error)]


def load_model(command: str, options: argparse.Namespace) -> Loaded:
    from ..checkpoints import UntrainedBudget, load

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UntrainedBudget)
        loaded = load(options.path, _reducer(options), dtype=options.dtype, device=options.device, **_location(options))
    for each in caught:
        if issubclass(each.category, UntrainedBudget):
            print(f"{command}: {each.message}", file=sys.stderr)
    return loaded


def _reducer(options: argparse.Namespace) -> Any:
    return None if options.full else options.method or "trained"


def _location(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "keep": options.keep,
        "attn_implementation": options.attn,
        "checkpoint": options.checkpoint,
        "base": options.base,
    }
