"""The commands `export`, `base` and `env`."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import options as cli

if TYPE_CHECKING:
    from ..common.environment import Environment

CHECKOUT = Path(__file__).resolve().parents[2]
NOT_IN_CHECKOUT = (
    "the training code of the base model (data/tiny_base/train) is in the repository and not in the installed "
    "package. Clone the repository and run this command in its folder"
)


@cli.reports_errors("export")
def export(argv: Sequence[str]) -> int:
    options = _export_parser().parse_args(argv)
    from ..exporting import export as write_export

    previous = signal.signal(signal.SIGTERM, _exit)  # an exception, so that an unfinished folder is removed
    try:
        write_export(
            options.run,
            options.out,
            checkpoint=options.checkpoint,
            adapter_only=options.adapter_only,
            force=options.force,
            dtype=options.dtype,
            base=options.base,
            for_engine=options.engine,
            convert=options.convert,
        )
    except RuntimeError as error:  # the verification failed; no folder was written
        return cli.report_error("export", error, cli.FAILED)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return cli.OK


def _exit(*signal_and_frame: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _export_parser() -> argparse.ArgumentParser:
    parser = cli.parser_of("export", "Turn a run into a folder that plain transformers loads, and verify it.")
    parser.add_argument("run", help="the folder of a run, or of one of its checkpoints")
    parser.add_argument("--out", required=True, help="the folder to create")
    parser.add_argument(
        "--checkpoint", type=cli.checkpoint, help="a step, newest or best (default: best, if there was a validation)"
    )
    parser.add_argument("--adapter-only", action="store_true", help="export the adapter without merging it, for PEFT")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--dtype", choices=cli.DTYPES, help="of the weights (default: the dtype of the training)")
    parser.add_argument("--base", help="path of an adapter's base model, if it was moved")
    parser.add_argument(
        "--for", dest="engine", choices=("vllm",), help="refuse a reduction that this inference engine cannot apply"
    )
    parser.add_argument("--convert", action="store_true", help="with --for: write the nearest reduction that it can")
    return parser


@cli.reports_errors("base")
def base(argv: Sequence[str]) -> int:
    """The training code is in the repository, data/tiny_base/train, with the images that it draws; not in the wheel."""
    parser = cli.parser_of("base", "Train a small base model on drawn shapes, from random weights.")
    cli.add_recipe(parser, "stages.joint.steps=100")
    stages = ("vision", "language", "projector", "joint")
    parser.add_argument("--until", choices=stages, help="the last stage to train")
    options = parser.parse_args(argv)
    command = _import_base()
    if command is None:
        raise ImportError(NOT_IN_CHECKOUT)
    recipe = command.load_base(options.recipe, options.overrides)
    command.train(recipe, options.until)
    if options.until is None:
        command.evaluate(recipe, options.recipe)
    return cli.OK


def _import_base() -> ModuleType | None:
    """data.tiny_base.train.command of the checkout that this package or the working folder is in, or None."""
    if (CHECKOUT / "data" / "tiny_base" / "train").is_dir() and str(CHECKOUT) not in sys.path:
        sys.path.append(str(CHECKOUT))
    try:
        return importlib.import_module("data.tiny_base.train.command")
    except ModuleNotFoundError as error:
        if error.name is not None and "data.tiny_base.train".startswith(error.name):
            return None
        raise


@cli.reports_errors("env")
def env(argv: Sequence[str]) -> int:
    parser = cli.parser_of("env", "Print versions, devices and known bad combinations, for a bug report.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from ..common.environment import read_environment, warnings_for

    found = read_environment()
    if options.json:
        print(json.dumps({**found.to_dict(), "warnings": warnings_for(found)}, indent=2))
    else:
        print("\n".join([*_lines(found), *(f"warning: {line}" for line in warnings_for(found))]))
    return cli.OK


def _lines(found: Environment) -> Iterator[str]:
    yield f"python         {found.python} on {found.system}, {found.cores} cores"
    for name, version in found.versions.items():
        yield f"{name:14} {version or '-'}"
    yield f"{'device':14} {_devices(found)}"
    yield f"{'nvcc':14} {'found' if found.nvcc else '-'}"
    yield f"{'/dev/shm':14} {'-' if found.shared_memory_gib is None else f'{found.shared_memory_gib} GiB'}"
    for name, value in found.variables.items():
        yield f"{name}={value}"


def _devices(found: Environment) -> str:
    if not found.gpus:
        return "CPU only" + (f" (torch built for CUDA {found.cuda})" if found.cuda else "")
    return ", ".join(f"{gpu.name} ({gpu.memory_gib} GiB, sm_{''.join(map(str, gpu.capability))})" for gpu in found.gpus)
