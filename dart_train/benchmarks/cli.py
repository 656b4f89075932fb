"""`python -m dart_train bench {select,step,prefill,...}`: what the reduction costs and gains on this machine."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..profiling import timing
from ..profiling.device import device_facts, load_average
from ..reduction import REDUCERS
from .baselines import VARIANTS
from .model_shapes import SHAPES, ModelShape
from .table import BenchReport, BenchTable

# Name -> (module, function from options to tables, what it measures). The modules are imported on use.
BENCHES = {
    "select": ("select", "bench_select", "the selection of tokens: every method, against one layer and the usual code"),
    "step": ("training_step", "bench_step", "a training step: full tokens, reduced, alternatives, and the bound"),
    "video": ("training_step", "bench_video", "the same step on rows with a video (Qwen2.5-VL)"),
    "prefill": ("inference", "bench_prefill", "from pixels to the first token, in the same variants"),
    "tower": ("tower_image", "bench_tower", "the vision tower on an image of yours, without its repeated pixels"),
    "decode": ("inference", "bench_decode", "a token of an answer, and the bytes of the cache"),
    "distill": ("training_step", "bench_distill", "a step with a teacher: in one forward, and in two"),
    "packing": ("packing", "bench_packing", "rows laid end to end against padded batches, on rows of mixed length"),
    "data": ("scaling", "bench_data", "rows a second of one core, and how long a training waits for them"),
    "ranks": ("scaling", "bench_ranks", "the same step on one rank and on two"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SELECT_SIZES = {"tokens": (576, 1152, 2880), "batch": (1, 8), "width": (1024, 4096)}


def main(argv: Sequence[str]) -> int:
    options = _parser().parse_args(argv)
    options.device = torch.device(options.device)
    _check(options)
    options.dtype = DTYPES[options.dtype or ("bfloat16" if options.device.type == "cuda" else "float32")]
    facts = device_facts(options.device, options.dtype)
    if options.clock == "cpu":
        timing.clock.count_cpu_time()
        facts["clock"] = "CPU time of the process"
    names = [name for name in BENCHES if name != "tower"] if options.bench == "all" else [options.bench]
    llava = argparse.Namespace(**{**vars(options), "models": ["llava"]})  # the one model that `packing` measures
    tables = [_function(name)(llava if name == "packing" and len(names) > 1 else options) for name in names]
    report = BenchReport(_command(argv), {**facts, "load after": load_average()}, tables)
    print(report.markdown(), end="")
    if options.out is not None:
        print("written: " + ", ".join(str(file) for file in report.save(options.out)), file=sys.stderr)
    return 0


def _function(name: str) -> Callable[[argparse.Namespace], BenchTable]:
    module, function, _ = BENCHES[name]
    found: Callable[[argparse.Namespace], BenchTable] = getattr(
        importlib.import_module(f".{module}", __package__), function
    )
    return found


def _command(argv: Sequence[str]) -> str:
    """The command that repeats the measurement, without --out: it does not change what is measured."""
    words = list(argv)
    if "--out" in words:
        del words[words.index("--out") : words.index("--out") + 2]
    return f"python -m dart_train bench {shlex.join(words)}"


def _check(options: argparse.Namespace) -> None:
    problems = []
    if options.device.type == "cuda" and not torch.cuda.is_available():
        problems.append("--device cuda: no GPU is visible here; use --device cpu")
    if options.device.type == "cuda" and options.clock == "cpu":
        problems.append("--clock cpu: a GPU works while the process waits; leave it out")
    problems += [
        f"--{name} {getattr(options, name)}: expected more than 0"
        for name in ("repeats", "seconds")
        if getattr(options, name) <= 0
    ]
    image = getattr(options, "image", None)
    if image is not None and not image.is_file():
        problems.append(f"--image {image}: no such file")
    if problems:
        raise ValueError("; ".join(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dart_train bench", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True, metavar="{" + ",".join([*BENCHES, "all"]) + "}")
    for name, what in {**{name: what for name, (_, _, what) in BENCHES.items()}, "all": "all of them"}.items():
        sub = benches.add_parser(name, help=what, description=what)
        _add_common_options(sub)
        if name != "select":
            _add_model_options(sub)
        if name == "tower":
            sub.add_argument("--image", type=Path, required=True, help="an image file; data/pages.py draws one")
        if name in ("select", "all"):
            _add_select_options(sub)
    return parser


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: bfloat16 on a GPU, float32 elsewhere")
    parser.add_argument("--repeats", type=int, default=9, help="rounds in which everything is timed once (9)")
    parser.add_argument("--seconds", type=float, default=20.0, help="limit for one workload in all rounds (20)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: if others load the machine")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.md")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", type=float, default=None, help="1: full size; default: 1 on a GPU, 0.125 elsewhere")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), help="default: all")
    parser.add_argument("--rows", type=int, help="rows of a training step; default: by model and scale")
    parser.add_argument("--modes", nargs="+", choices=["lora", "full"], default=["lora", "full"], help="what trains")
    parser.add_argument(
        "--ways", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="variants of a step and a prefill"
    )
    parser.add_argument("--checkpointing", action="store_true", help="training steps with gradient checkpointing")


def _add_select_options(parser: argparse.ArgumentParser) -> None:
    for name, numbers in SELECT_SIZES.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", help=f"default: {' '.join(map(str, numbers))}")
    parser.add_argument("--methods", nargs="+", default=list(REDUCERS), help="default: all of the registry")


def scale_of(options: argparse.Namespace) -> float:
    if options.scale is not None:
        return float(options.scale)
    return 0.03 if options.quick else 1.0 if options.device.type == "cuda" else 0.125


def shapes_of(options: argparse.Namespace, *default: str) -> list[ModelShape]:
    """The requested ones, or else `default`, or else all."""
    return [SHAPES[key] for key in options.models or (["llava"] if options.quick else default or SHAPES)]


def rows_of(options: argparse.Namespace, shape: ModelShape) -> int:
    return options.rows or (shape.batch if scale_of(options) >= 1 else 2 if options.quick else max(1, shape.batch // 4))


def repeats_of(options: argparse.Namespace) -> int:
    return min(options.repeats, 2) if options.quick else int(options.repeats)
