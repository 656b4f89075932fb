"""What can be asked of the benches that run whole models."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .shapes import Shape

FULL, NOTHING, OURS = "full tokens", "keep-all attached", "DART"
USUAL, EAGER, MASKED, PIXELS = "set-and-loop choice", "scores by eager attention", "masked, not dropped", "fewer pixels"
WAYS = (FULL, NOTHING, OURS, USUAL, EAGER, MASKED, PIXELS)
MODELS = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl")


def settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scale", type=float, default=None, help="1: full size; default: 1 on a GPU, 0.125 elsewhere")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all")
    parser.add_argument("--rows", type=int, help="rows of a training step; default: by model and scale")
    parser.add_argument("--modes", nargs="+", choices=["lora", "full"], default=["lora", "full"], help="what trains")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="of a step and a prefill")
    parser.add_argument("--checkpointing", action="store_true", help="training steps compute layers again")


def scale_of(options: argparse.Namespace) -> float:
    if options.scale is not None:
        return float(options.scale)
    return 0.03 if options.quick else 1.0 if options.device.type == "cuda" else 0.125


def shapes_of(options: argparse.Namespace, *otherwise: str) -> list[Shape]:
    """Those asked for, or these, or all."""
    from .shapes import SHAPES

    return [SHAPES[key] for key in options.models or (["llava"] if options.quick else otherwise or MODELS)]


def rows_of(options: argparse.Namespace, shape: Shape) -> int:
    return options.rows or (shape.batch if scale_of(options) >= 1 else 2 if options.quick else max(1, shape.batch // 4))


def repeats_of(options: argparse.Namespace) -> int:
    return min(options.repeats, 2) if options.quick else int(options.repeats)
