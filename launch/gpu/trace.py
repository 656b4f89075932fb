"""Read from a profiler trace: the longest kernels, and the launches within a named range.

On a GPU a piece of work is a kernel, a copy or a fill, launched by a call of the CUDA runtime; a trace of a CPU has
operators instead, of which the innermost count that are more than another view of the same memory.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Event = dict[str, Any]
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
# Operators that compute nothing.
_VIEWS = (
    "alias as_strided detach detach_ empty empty_like empty_strided expand expand_as flatten lift_fresh narrow "
    "new_empty numpy_T permute reshape resize_ resolve_conj resolve_neg result_type select set_ slice split "
    "split_with_sizes squeeze t to transpose unbind unflatten unsafe_split unsqueeze view view_as _reshape_alias "
    "_unsafe_view"
)
VIEWS = frozenset(f"aten::{name}" for name in _VIEWS.split())


@dataclass(frozen=True)
class Work:
    """seconds: on the device; launched: when the host launched it, in microseconds of the trace."""

    name: str
    seconds: float
    launched: float


@dataclass(frozen=True)
class Summary:
    """wall_seconds: measured without the profiler; selection_*: within the named range, the sum of all of them."""

    wall_seconds: float
    seconds: float
    launches: int
    selections: int
    selection_seconds: float
    selection_launches: int
    selection_host_seconds: float
    longest: list[tuple[str, int, float]]  # name, launches, seconds

    def table(self) -> str:
        lines = ["| kernel | launches | ms | share |", "| --- | --- | --- | --- |"]
        for name, number, seconds in self.longest:
            short = name.replace("|", "/")[:100]
            lines.append(f"| {short} | {number} | {1e3 * seconds:.3f} | {seconds / self.seconds:.1%} |")
        return "\n".join(lines)


def summarize(file: Path, name: str, wall_seconds: float, longest: int = 10) -> Summary:
    """file: a trace in JSON, compressed by gzip; name: of the range."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        events = [event for event in json.load(lines)["traceEvents"] if event.get("ph") == "X"]
    work = work_of(events)
    ranges = [e for e in events if e["name"] == name and e.get("cat") in ("user_annotation", "cpu_op")]
    inside = [w for w in work if any(r["ts"] <= w.launched <= r["ts"] + r["dur"] for r in ranges)]
    by_name: dict[str, list[float]] = defaultdict(list)
    for each in work:
        by_name[each.name].append(each.seconds)
    ordered = sorted(by_name.items(), key=lambda item: -sum(item[1]))
    return Summary(
        wall_seconds=wall_seconds,
        seconds=sum(w.seconds for w in work),
        launches=len(work),
        selections=len(ranges),
        selection_seconds=sum(w.seconds for w in inside),
        selection_launches=len(inside),
        selection_host_seconds=sum(r["dur"] for r in ranges) / 1e6,
        longest=[(kernel, len(times), sum(times)) for kernel, times in ordered[:longest]],
    )


def work_of(events: Sequence[Event]) -> list[Work]:
    on_gpu = [event for event in events if event.get("cat") in ON_GPU]
    if not on_gpu:
        return [Work(e["name"], e["dur"] / 1e6, e["ts"]) for e in innermost(events)]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    return [Work(e["name"], e["dur"] / 1e6, launched.get(e.get("args", {}).get("correlation"), -1.0)) for e in on_gpu]


def innermost(events: Sequence[Event]) -> list[Event]:
    """Operators that compute, and within which no other one computes."""
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op" and event["name"].startswith("aten::") and event["name"] not in VIEWS:
            by_thread[event["tid"]].append(event)
    found = []
    for listed in by_thread.values():
        listed.sort(key=lambda e: (e["ts"], -e["dur"]))
        for event, after in zip(listed, [*listed[1:], None], strict=True):
            if after is None or after["ts"] >= event["ts"] + event["dur"]:
                found.append(event)
    return found
