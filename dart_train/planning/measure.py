"""The timing itself: which calls, on which batch, and how they add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..profiling.flops import QuadraticCost
from ..profiling.timing import Workload, interleaved, time_once
from .batch import encoded
from .probe import Probe
from .rates import Rates
from .room import fitting, widened
from .setup import Setup
from .work import StepWorkload, Work

_REPEATS = 5
_SHARES = (0.25, 1.0)  # of the targets, for the head


@dataclass(frozen=True)
class Timed:
    """The batch that is timed: the training's own of median length, or some of its rows."""

    batch: Mapping[str, Tensor]
    rows: int
    visual: np.ndarray  # tokens of each row
    targets: int

    @property
    def length(self) -> int:
        return int(self.batch["input_ids"].shape[1])

    @property
    def padded(self) -> bool:
        return not bool(self.batch["attention_mask"].all())


def measure(config: Any, setup: Setup, workload: StepWorkload, works: Sequence[Work], device: torch.device,
            seconds: float, trained: int) -> Rates:  # fmt: skip
    """works: full tokens first, then every budget; seconds: for each call in all its repeats; trained: how many
    weights of the whole model train."""
    small, factor = fitting(config, setup, device)
    probe, at = Probe(small, setup, device), _median(works[0])
    affordable = _affordable(probe, works[0], at, seconds)
    timed = _timed(workload, at, affordable, setup, device)
    optimizer, weights = probe.optimizer()
    jobs = {"optimizer": optimizer, **_jobs(probe, timed, _lengths(works), whole=factor == 1)}
    timings = interleaved(jobs, device, _REPEATS, seconds)
    found = {name: timing.median for name, timing in timings.items()}
    layer, forward = (_fitted(name, timed.rows, found) for name in ("layer", "forward"))
    if factor > 1:
        layer, forward = (widened(fit, config, small, setup) for fit in (layer, forward))
    visual = max(1, int(timed.visual.sum()))
    other = found["body"] - found.get("tower", 0.0) - found["one layer"] if factor == 1 else 0.0
    return Rates(
        layer=layer,
        forward=forward,
        head=_fitted("head", 1, found, pairs=False).scaled(factor),
        tower=(found.get("tower", 0.0) + found.get("tower again", 0.0)) / visual,
        choice=sum(time for name, time in found.items() if name.startswith("choice")) / timed.rows,
        other=max(0.0, other) * float(works[0].rows.mean()) / timed.rows,
        optimizer=found["optimizer"] / weights * trained,
        tower_saved=probe.tower_saved(timed.batch) / visual if "tower" in jobs else 0.0,
        timings=timings,
        notes=_notes(timed.rows, int(works[0].rows[at]), factor),
    )


def _jobs(probe: Probe, timed: Timed, lengths: Sequence[int], whole: bool) -> dict[str, Workload]:
    recipe = probe.setup.recipe
    again, teacher = recipe.train.gradient_checkpointing, recipe.distill.enabled
    jobs: dict[str, Workload] = {}
    if whole:
        jobs["body"] = probe.body(timed.batch)
        jobs["one layer"] = probe.layer(timed.rows, timed.length, timed.padded)
    if timed.visual.any():
        jobs["tower"] = probe.tower(timed.batch)
        if again and probe.trains("vision"):
            jobs["tower again"] = probe.tower(timed.batch, gradients=False)
    for length in lengths:
        jobs[f"layer {length}"] = probe.layer(timed.rows, length, timed.padded, again)
        if teacher:
            jobs[f"forward {length}"] = probe.forward(timed.rows, length, timed.padded)
    for number in sorted({max(1, round(timed.targets * share)) for share in _SHARES}):
        jobs[f"head {number}"] = probe.head(number)
    tokens = round(float(timed.visual[timed.visual > 0].mean())) if timed.visual.any() else 0
    for stage, reducer in enumerate(recipe.reduction.reducers() if tokens else ()):
        jobs[f"choice {stage}"] = probe.choice(reducer, timed.rows, tokens)
        tokens = reducer.kept_tokens([tokens])
    return jobs


def _lengths(works: Sequence[Work]) -> list[int]:
    """Three, over the range that the run will see."""
    seen = np.concatenate([lengths for work in works for _, lengths in work.stages])
    low, high = np.percentile(seen[seen > 0], (5, 95))
    low = min(low, high / 2)
    return sorted({max(2, round(length)) for length in (low, (low + high) / 2, high)})


def _fitted(name: str, rows: int, found: Mapping[str, float], pairs: bool = True) -> QuadraticCost:
    points = [(rows, int(key.split()[1]), time) for key, time in found.items() if key.startswith(f"{name} ")]
    return QuadraticCost.fit(points, pairs) if points else QuadraticCost()


def _median(work: Work) -> int:
    """The micro-batch of median length, among those with a picture where there are any."""
    lengths = work.rows * work.stages[0][1]
    among = np.flatnonzero(work.visual if work.visual.any() else lengths)
    return int(among[np.argsort(lengths[among])[len(among) // 2]])


def _affordable(probe: Probe, work: Work, at: int, seconds: float) -> int:
    """As many rows of a micro-batch as leave time for all repeats; several together are no slower than alone."""
    alone = probe.layer(1, int(work.stages[0][1][at]), False)
    time_once(alone, probe.device)
    rows = int(seconds / (_REPEATS + 1) / time_once(alone, probe.device))
    return max(1, min(rows, int(work.rows[at])))


def _timed(workload: StepWorkload, at: int, size: int, setup: Setup, device: torch.device) -> Timed:
    rows = workload.data
    numbers = [number for number in workload.batches[at] if not rows.rows[number].dropped]
    numbers = sorted(numbers, key=lambda n: -workload.visual[n])[:size]
    return Timed(
        encoded(rows, numbers, setup, device),
        len(numbers),
        workload.visual[numbers],
        max(1, int(workload.learnt[workload.batches].sum(1).mean())),
    )


def _notes(rows: int, wanted: int, factor: int) -> tuple[str, ...]:
    notes = []
    if rows < wanted:
        notes.append(f"{rows} of {wanted} rows were timed at a time, and scaled up")
    if factor > 1:
        notes.append(f"the decoder layer did not fit; one of 1/{factor} of its width was timed, and scaled by FLOPs")
    return tuple(notes)
