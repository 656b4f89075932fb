"""`python -m dart_train bench {select,step,prefill,...}`: what the reduction costs and gains on this very machine.

One module per bench, with `add_options(parser)` and `run(options) -> tables`; a new one is one more line here.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..profiling import timing
from ..profiling.device import device_facts, load_average
from . import goals
from .options import settings
from .table import Report

BENCHES = {
    "select": "the choice of tokens: every method, against one layer's forward and the usual code",
    "step": "a training step: full tokens, reduced, and the field's other ways, beside what arithmetic allows",
    "prefill": "from pixels to the first token, in the same ways",
    "decode": "a token of an answer, and the bytes of the cache",
    "distill": "a step with a teacher: in one forward, and in two",
    "data": "rows a second of one core, and whether a training waits for them",
    "ranks": "the same step on one rank and on two",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    options.device = torch.device(options.device)
    _check(options)
    options.dtype = DTYPES[options.dtype or ("bfloat16" if options.device.type == "cuda" else "float32")]
    names = list(BENCHES) if options.bench == "all" else [options.bench]
    facts = device_facts(options.device, options.dtype)
    if options.clock == "cpu":
        timing.clock.count_cpu_time()
        facts["clock"] = "CPU time of the process"
    tables = [table for name in names for table in _bench(name).run(options)]
    if {"step", "prefill", "decode", "distill"} & set(names):
        tables = [goals.table_of(tables, options), *tables]
    report = Report(_command(argv), {**facts, "load after": load_average()}, tables)
    print(report.markdown(), end="")
    if options.out is not None:
        print("written: " + ", ".join(str(file) for file in report.save(options.out)), file=sys.stderr)
    return 0


def _command(argv: Sequence[str]) -> str:
    """What to type for the same measurement; where it was written is nobody's business."""
    words = list(argv)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return " ".join(["python -m dart_train bench", *words])


def _check(options: argparse.Namespace) -> None:
    problems = []
    if options.device.type == "cuda" and not torch.cuda.is_available():
        problems.append("--device cuda: no GPU is seen here; use --device cpu")
    if options.device.type == "cuda" and options.clock == "cpu":
        problems.append("--clock cpu: a GPU works while the process waits; leave it out")
    problems += [
        f"--{name} {getattr(options, name)}: expected more than 0"
        for name in ("repeats", "seconds")
        if getattr(options, name) <= 0
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _bench(name: str):  # type: ignore[no-untyped-def]  # a module
    return importlib.import_module(f"{__name__}.{name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train bench", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="{" + ",".join([*BENCHES, "all"]) + "}")
    for name, what in {**BENCHES, "all": "all of them"}.items():
        sub = benches.add_parser(name, help=what, description=what)
        _add_common(sub)
        if name != "select":
            settings(sub)
        for part in BENCHES if name == "all" else (name,):
            _bench(part).add_options(sub)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--repeats", type=int, default=9, help="rounds in which everything is timed once (9)")
    parser.add_argument("--seconds", type=float, default=20.0, help="what one thing may take in all rounds (20)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: where others load the machine")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does it run?")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.md")
