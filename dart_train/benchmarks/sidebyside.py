"""One piece of work done in several ways, one after the other in every round: times, ratios, memory, tokens."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..profiling.device import DevicePeak, measure_peak
from ..profiling.memory import peak_memory
from ..profiling.timing import Timing, WithContext, Workload, ratio, rounds
from .options import FULL, MASKED, NOTHING, OURS, repeats_of, shapes_of
from .shapes import Shape
from .subject import Subject, visual
from .table import Row, milliseconds, percent, times
from .ways import Way

GIB = 2**30
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Bound:
    """How much faster arithmetic allows: by FLOPs alone; by FLOPs and bytes, each operation at the slower of both."""

    flops: float
    time: float


def device_peak(options: argparse.Namespace) -> DevicePeak:
    return measure_peak(options.device, options.dtype)


def each_shape(
    options: argparse.Namespace, measure: Callable[[Shape, DevicePeak, argparse.Namespace], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The rows of every model that was asked for, one after the other."""
    peak, rows = device_peak(options), list[dict[str, Any]]()
    for shape in shapes_of(options):
        rows += measure(shape, peak, options)
        tidy(options.device)
    return rows


def compare(
    subject: Subject,
    ways: Sequence[Way],
    job_of: Callable[[Way], Workload],
    bounds: Mapping[str, Bound],
    options: argparse.Namespace,
    what: str,
    base: str = FULL,
) -> list[dict[str, Any]]:
    """A row for each way; the first run of each, in which its memory is watched, is its warm-up."""
    jobs, rows = {}, []
    for way in ways:
        job = WithContext(way.ready, job_of(way))
        try:
            rows.append(_observed(subject, way, job, options.device))
            jobs[way.name] = job
        except torch.OutOfMemoryError:
            subject.model.zero_grad(set_to_none=True)
            rows.append({"way": way.name, "failed": OUT_OF_MEMORY})
        tidy(options.device)
    first, spent = rounds(jobs, options.device, repeats_of(options), options.seconds, what)
    for row in rows:
        if "failed" not in row:
            row |= _timed(row["way"], first, spent, bounds.get(row["way"]), base)
    return [{"model": subject.shape.name, **row} for row in rows]


def _observed(subject: Subject, way: Way, job: WithContext, device: torch.device) -> dict[str, Any]:
    with way.ready():
        peak = peak_memory(job.workload, device)
    return {"way": way.name, "visual tokens": tokens_seen(subject, way), "peak bytes": peak}


def tokens_seen(subject: Subject, way: Way) -> int:
    """Visual tokens of a row behind layer K, asked of what ran."""
    if way.attached is not None and way.attached.last is not None:
        return way.attached.last.visual_after[0]
    if way.name == MASKED:
        return int(subject.kept[0].sum()) - subject.length + subject.shape.tokens
    return visual(subject.given(way.few)[1]["input_ids"])


def _timed(
    name: str, first: Mapping[str, float], spent: Mapping[str, list[float]], bound: Bound | None, base: str
) -> dict[str, Any]:
    warm = bool(spent[name]) and bool(spent.get(base))
    timing = Timing.of(spent[name] or [first[name]], warm=bool(spent[name]))
    faster = ratio(spent[base], spent[name]) if warm else None
    found: dict[str, Any] = {"faster": faster, "seconds": timing}
    if bound is not None:
        found |= {"bound": bound.time, "bound by FLOPs": bound.flops}
        found["measured / bound"] = faster.median / bound.time if faster else None
    return found


def tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _cell(name: str, write: Callable[[Any], str]) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        if "failed" in row:
            return str(row["failed"]) if name == "faster" else ""
        value = row.get(name)
        return "" if value is None else write(value)

    return cell


def spread(found: Timing) -> str:
    """A ratio's median [quartiles]."""
    median, low, high = (f"{x:.3g}" for x in (found.median, found.low, found.high))
    return f"{median}x" if found.repeats == 1 else f"{median}x [{low}, {high}]"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: str(row["model"]),
    "way": lambda row: str(row["way"]),
    "visual tokens": _cell("visual tokens", str),
    "faster, median [quartiles]": _cell("faster", spread),
    "bound": _cell("bound", times),
    "measured / bound": _cell("measured / bound", percent),
    "bound by FLOPs alone": _cell("bound by FLOPs", times),
    "peak memory, GiB": _cell("peak bytes", lambda size: f"{size / GIB:.3g}"),
    "ms, median [quartiles]": _cell("seconds", milliseconds),
    "repeats": _cell("seconds", lambda timing: str(timing.repeats)),
}
NOTES = (
    "Random weights in the real classes: time does not depend on them. Faster: against full tokens, round by round.",
    "Bound: the same work with every layer from 2 on at the cost of a layer of the short length, and the choice for "
    "nothing; each operation of it counted, at the slower of this device's best FLOPs and bytes a second.",
    f"{OURS}: layers 0 and 1 at full length, the others short. {NOTHING}: everything is kept: the price of being "
    "attached. Peak memory: beyond weights and optimizer.",
    "Set-and-loop choice: the same reduction, chosen one sample and one pivot at a time (keeps 4 more, as released "
    "code does). Scores by eager attention: FastV with all attention in plain products. Masked, not dropped: the same "
    "tokens as DART's, found ahead, hidden by a mask that is made once. Fewer pixels: a smaller picture to encode.",
)
