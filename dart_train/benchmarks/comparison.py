"""One workload in several variants, interleaved: times, speed-ups, bounds, memory, visual tokens; and their columns."""

from __future__ import annotations

import argparse
import functools
import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.structure import find_parts
from ..models.towers import find_tower
from ..profiling.device import DevicePeak, measure_peak
from ..profiling.flops import capture_layer_call, hidden_states
from ..profiling.memory import peak_memory
from ..profiling.op_count import OpCount, count_ops
from ..profiling.timing import Timing, WithContext, Workload, ratio, rounds
from .baselines import FULL, KEEP_ALL, MASKED, OURS, TOWER, TOWER_ON, Variant, make_variants
from .cli import repeats_of, shapes_of
from .model_shapes import ModelShape
from .table import Row, milliseconds, percent, ratio_text, times
from .workloads import LAYER, BenchModel

GIB = 2**30


def each_shape(
    options: argparse.Namespace,
    measure: Callable[[ModelShape, DevicePeak, argparse.Namespace], list[dict[str, Any]]],
    *default: str,
) -> list[dict[str, Any]]:
    """The rows of every requested model, one model after the other."""
    peak, rows = measure_peak(options.device, options.dtype), list[dict[str, Any]]()
    for shape in shapes_of(options, *default):
        rows += measure(shape, peak, options)
        release_memory(options.device)
    return rows


def compare_variants(
    bench: BenchModel,
    variants: Sequence[Variant],
    workload_of: Callable[[Variant], Workload],
    bounds: Mapping[str, Bound],
    options: argparse.Namespace,
    progress: str,
    base: str = FULL,
) -> list[dict[str, Any]]:
    """A row for each variant. The first run of each is its warm-up, in which its memory is measured."""
    workloads, rows = dict[str, Workload](), list[dict[str, Any]]()
    for variant in variants:
        workload = WithContext(variant.active, workload_of(variant))
        try:
            with variant.active():
                peak = peak_memory(workload.workload, options.device)
            rows.append(
                {"way": variant.name, "visual tokens": tokens_after_reduction(bench, variant), "peak bytes": peak}
            )
            workloads[variant.name] = workload
        except torch.OutOfMemoryError:
            bench.model.zero_grad(set_to_none=True)
            rows.append({"way": variant.name, "failed": "out of memory"})
        release_memory(options.device)
    first, seconds = rounds(workloads, options.device, repeats_of(options), options.seconds, progress)
    for row in rows:
        if "failed" not in row:
            row |= _timed(row["way"], first, seconds, bounds.get(row["way"]), base)
    return [{"model": bench.shape.name, **row} for row in rows]


def tokens_after_reduction(bench: BenchModel, variant: Variant) -> int:
    """Visual tokens of a row after layer K, of the forward that ran last."""
    if variant.attached is not None and variant.attached.last is not None:
        return variant.attached.last.visual_after[0]
    if variant.name == MASKED:
        return int(bench.kept[0].sum()) - bench.length + bench.shape.tokens
    ids = bench.inputs(variant.small)[1]["input_ids"]
    return int((ids[0] == bench.shape.visual_id).sum())


def _timed(
    name: str, first: Mapping[str, float], seconds: Mapping[str, list[float]], bound: Bound | None, base: str
) -> dict[str, Any]:
    warm = bool(seconds[name]) and bool(seconds.get(base))
    timing = Timing.of(seconds[name] or [first[name]], warm=bool(seconds[name]))
    faster = ratio(seconds[base], seconds[name]) if warm else None
    found: dict[str, Any] = {"faster": faster, "seconds": timing}
    if bound is not None:
        found |= {"bound": bound.time, "bound by FLOPs": bound.flops}
        found["measured / bound"] = faster.median / bound.time if faster else None
    return found


def release_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Bound:
    """The speed-up that the reduction allows at most: by FLOPs alone; by FLOPs and bytes together."""

    flops: float
    time: float

    @classmethod
    def of(cls, full: OpCount, reduced: OpCount) -> Bound:
        return cls(full.flops / reduced.flops, full.seconds / reduced.seconds)


NO_GAIN = Bound(1.0, 1.0)


@dataclass(frozen=True)
class IdealCost:
    """The least cost of a workload with a reduction: every layer from K on costs what a layer of the reduced length
    costs, and the selection of tokens nothing. full: of the workload at full tokens, counted."""

    full: OpCount
    bench: BenchModel
    peak: DevicePeak
    training: bool

    @classmethod
    def of(cls, bench: BenchModel, workload: Workload, peak: DevicePeak, training: bool) -> IdealCost:
        """workload: at full tokens."""
        return cls(count_ops(workload, peak), bench, peak, training)

    def at(self, length: int) -> OpCount:
        """The operations with `length` tokens per row from layer K on."""
        return self.full + (self.layer(length) - self.layer(self.bench.length)) * (self.bench.depth - LAYER)

    def layer(self, length: int) -> OpCount:
        return count_layer(self.bench, length, self.peak, self.training)

    def bounds(self) -> dict[str, Bound]:
        reduced = self.at(self.bench.reduced_length)
        found = {OURS: Bound.of(self.full, reduced), KEEP_ALL: NO_GAIN, TOWER_ON: NO_GAIN}
        if self.bench.shape.frames:  # the tower is measured on images
            return found
        with_tower = reduced + (count_tower(self.bench, self.peak, TOWER) - count_tower(self.bench, self.peak, FULL))
        return {**found, TOWER: Bound.of(self.full, with_tower)}


@torch.no_grad()
def count_tower(bench: BenchModel, peak: DevicePeak, variant: str) -> OpCount:
    """The blocks of the vision tower, forward (it is frozen in training), as this variant calls them."""
    parts, calls = find_parts(bench.model), list[tuple[Any, Any, Any]]()
    encode = parts.inner.get_image_features
    inputs = {name: bench.batch[name] for name in bench.batch.keys() & inspect.signature(encode).parameters}

    def capture(module: Any, args: Any, kwargs: Any) -> None:
        calls.append((module, args, kwargs))

    (made,) = make_variants(bench, "expand", (variant,))
    with made.active():  # hooks of blocks are called in the order of registration: these see what the block gets
        blocks = find_tower(parts).blocks
        handles = [block.register_forward_pre_hook(capture, with_kwargs=True) for block in blocks]
        encode(**inputs)
        for handle in handles:
            handle.remove()
    counts = [count_ops(functools.partial(block, *args, **kwargs), peak) for block, args, kwargs in calls]
    return functools.reduce(lambda total, each: total + each, counts)


def count_layer(bench: BenchModel, length: int, peak: DevicePeak, training: bool) -> OpCount:
    """One decoder layer: forward; in training backward too, with checkpointing if the model has it enabled."""
    rows, text = int(bench.host["input_ids"].shape[0]), find_parts(bench.model).text
    weight = next(bench.model.parameters())
    layer, hidden, args, kwargs = capture_layer_call(text, rows, length, False, weight.dtype, weight.device)

    def forward() -> None:
        with torch.no_grad():
            layer(hidden, *args, **kwargs)

    def forward_and_backward() -> None:
        output = hidden_states(layer(hidden, *args, **kwargs))
        output.backward(torch.ones_like(output))
        for tensor in (hidden, *layer.parameters()):
            tensor.grad = None

    return count_ops(forward_and_backward if training else forward, peak)


def _cell(name: str, write: Callable[[Any], str]) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if "failed" in row:
            return str(row["failed"]) if name == "faster" else ""
        value = row.get(name)
        return "" if value is None else write(value)

    return cell


BOUND_HEADER = "bound (no layer is faster, selection is free)"
COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: str(row["model"]),
    "variant": lambda row: str(row["way"]),
    "visual tokens": _cell("visual tokens", str),
    "faster, median [quartiles]": _cell("faster", ratio_text),
    BOUND_HEADER: _cell("bound", times),
    "measured / bound": _cell("measured / bound", percent),
    "bound by FLOPs alone": _cell("bound by FLOPs", times),
    "peak memory, GiB": _cell("peak bytes", lambda size: f"{size / GIB:.3g}"),
    "ms, median [quartiles]": _cell("seconds", milliseconds),
    "repeats": _cell("seconds", lambda timing: str(timing.repeats)),
}
NOTES = (
    "Random weights in the real model classes: time does not depend on them. Faster: against full tokens, round by "
    "round.",
    "Bound: the speed-up if every layer from 2 on cost exactly what a layer of the reduced length costs, and the "
    "selection nothing. Every operation is counted, at the slower of the FLOPs and bytes a second that this device "
    "reached in a matrix product and in a copy. Measured / bound: the part of it that was reached.",
    f"{OURS}: layers 0 and 1 at full length, the others reduced. {KEEP_ALL}: the reduction is attached and keeps all: "
    "its overhead. Peak memory: above weights and optimizer.",
    f"{TOWER}: all blocks of the vision tower run on half of the units. {TOWER_ON}: equal pixels are looked for, and "
    "none are found.",
    "Set-and-loop choice: the same reduction, selected one sample and one pivot at a time (keeps 4 more, as released "
    "code does). Scores by eager attention: FastV with all attention in plain matrix products. Masked, not dropped: "
    "the tokens that DART keeps, selected ahead; the others are hidden by a mask made once. Fewer pixels: a smaller "
    "image for the vision tower.",
)
