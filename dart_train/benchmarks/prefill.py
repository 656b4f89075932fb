"""`bench prefill`: from pixels to the first token."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..profiling.device import DevicePeak
from ..profiling.timing import Workload
from . import sidebyside
from .batches import BEFORE, BEHIND
from .ideal import Ideal
from .options import NOTHING, OURS, scale_of
from .shapes import Shape
from .sidebyside import Bound, compare, each_shape
from .subject import Subject, subject_of
from .table import Table
from .ways import Way, ways_of


def add_options(parser: argparse.ArgumentParser) -> None:
    pass


def run(options: argparse.Namespace) -> list[Table]:
    text = f"One row: {BEFORE} tokens, one picture, {BEHIND} tokens; logits of the last. The cache is filled."
    return [Table("Prefill", sidebyside.COLUMNS, each_shape(options, measure), [text, *sidebyside.NOTES])]


def measure(shape: Shape, peak: DevicePeak, options: argparse.Namespace) -> list[dict[str, Any]]:
    subject = subject_of(shape, scale_of(options), 1, options.device, options.dtype)
    ways = ways_of(subject.model, shape, subject.kept, "expand", options.ways)
    ideal = Ideal.of(subject, filling(subject, ways[0]), peak, training=False)
    short = ideal.at(subject.short)
    ours = Bound(ideal.full.flops / short.flops, ideal.full.seconds / short.seconds)
    bounds = {OURS: ours, NOTHING: Bound(1.0, 1.0)}
    return compare(subject, ways, lambda way: filling(subject, way), bounds, options, f"{shape.key} prefill")


def filling(subject: Subject, way: Way) -> Workload:
    batch = subject.given(way.few)[0]
    return torch.no_grad()(lambda: subject.model(**batch, use_cache=True, logits_to_keep=1))
