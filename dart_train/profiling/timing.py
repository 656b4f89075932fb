"""Times that can be compared: workloads in interleaved rounds (A B A B), a separate warm-up, median and quartiles."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from tqdm import tqdm

Workload = Callable[[], object]  # what is timed


class Clock:
    """Wall time, or the CPU time of this process: the latter does not count time in which other processes run."""

    read: Callable[[], float] = staticmethod(time.perf_counter)

    def count_cpu_time(self) -> None:
        self.read = time.process_time


clock = Clock()


@dataclass(frozen=True)
class WithContext:
    """A workload inside a context manager; entering and leaving the context is not timed."""

    around: Callable[[], AbstractContextManager[object]]
    workload: Workload

    def __call__(self) -> object:
        with self.around():
            return self.workload()


@dataclass(frozen=True)
class Timing:
    """Seconds. warm: False if the only run was the first one, because there was no time for another."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    repeats: int
    warm: bool = True

    @classmethod
    def of(cls, seconds: Sequence[float], warm: bool = True) -> Timing:
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0], 1, warm)
        low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
        return cls(median, low, high, len(seconds), warm)


def interleaved(
    workloads: Mapping[str, Workload], device: torch.device, repeats: int, seconds: float
) -> dict[str, Timing]:
    """Every workload once a round, so that a slow phase of the machine slows all of them alike.

    A workload that has used up its `seconds` is left out of the remaining rounds; one whose first run took longer
    than `seconds` is not repeated.
    """
    first, times = rounds(workloads, device, repeats, seconds)
    return {name: Timing.of(times[name] or [first[name]], warm=bool(times[name])) for name in workloads}


Rounds = tuple[dict[str, float], dict[str, list[float]]]


def rounds(
    workloads: Mapping[str, Workload], device: torch.device, repeats: int, seconds: float, progress: str = ""
) -> Rounds:
    """(seconds of each workload's first run, seconds of its later rounds). progress: title of a progress bar."""
    bar = tqdm(total=len(workloads) * (repeats + 1), desc=progress, leave=False, disable=not progress or None)
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in workloads}
    with bar:
        for name, workload in workloads.items():
            first[name] = time_once(workload, device)
            bar.update()
        for _ in range(repeats):
            for name, workload in workloads.items():
                if first[name] <= seconds and sum(times[name]) + first[name] <= seconds:
                    times[name].append(time_once(workload, device))
                bar.update()
    return first, times


def ratio(above: Sequence[float], below: Sequence[float]) -> Timing:
    """The ratio of two workloads, round by round: what slows down a complete round cancels out."""
    return Timing.of([a / b for a, b in zip(above, below, strict=False)])


def time_once(workload: Workload, device: torch.device) -> float:
    if isinstance(workload, WithContext):
        with workload.around():
            return time_once(workload.workload, device)
    collects = gc.isenabled()
    gc.disable()  # as timeit does
    try:
        synchronize(device)
        start = clock.read()
        workload()
        synchronize(device)
        return clock.read() - start
    finally:
        if collects:
            gc.enable()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_syncs(workload: Workload, device: torch.device) -> int | None:
    """How often the host waits for the GPU within the workload; None without a GPU."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            workload()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
