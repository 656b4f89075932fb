"""Times that can be compared: interleaved repeats (A B A B), warm-up apart, median and quartiles."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from tqdm import tqdm

Job = Callable[[], object]


class Clock:
    """Wall time; or, where others load the machine, the CPU time of this process, which stands still when it does."""

    read: Callable[[], float] = staticmethod(time.perf_counter)

    def count_cpu_time(self) -> None:
        self.read = time.process_time


clock = Clock()


@dataclass(frozen=True)
class WithContext:
    """A job with what must be there while it runs, whose coming and going is not timed."""

    around: Callable[[], AbstractContextManager[object]]
    job: Job

    def __call__(self) -> object:
        with self.around():
            return self.job()


@dataclass(frozen=True)
class Timing:
    """Seconds. warm: False where the only run there was time for was the first one."""

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


def interleaved(jobs: Mapping[str, Job], device: torch.device, repeats: int, seconds: float) -> dict[str, Timing]:
    """Each job once a round, so that whatever slows the machine down for a while slows all of them.

    A job that has used up its `seconds` sits out the rounds that are left; one that needs more than that for
    a single run is not run twice.
    """
    first, times = rounds(jobs, device, repeats, seconds)
    return {name: Timing.of(times[name] or [first[name]], warm=bool(times[name])) for name in jobs}


Rounds = tuple[dict[str, float], dict[str, list[float]]]


def rounds(jobs: Mapping[str, Job], device: torch.device, repeats: int, seconds: float, what: str = "") -> Rounds:
    """What each job took at first and in each round; for `what`, a bar shows how far it is."""
    bar = tqdm(total=len(jobs) * (repeats + 1), desc=what, leave=False, disable=not what or None)
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with bar:
        for name, job in jobs.items():
            first[name] = once(job, device)
            bar.update()
        for _ in range(repeats):
            for name, job in jobs.items():
                if first[name] <= seconds and sum(times[name]) + first[name] <= seconds:
                    times[name].append(once(job, device))
                bar.update()
    return first, times


def ratio(above: Sequence[float], below: Sequence[float]) -> Timing:
    """Of two jobs, round by round: what slowed down a whole round falls out."""
    return Timing.of([a / b for a, b in zip(above, below, strict=False)])


def once(job: Job, device: torch.device) -> float:
    if isinstance(job, WithContext):
        with job.around():
            return once(job.job, device)
    synchronize(device)
    start = clock.read()
    job()
    synchronize(device)
    return clock.read() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_syncs(job: Job, device: torch.device) -> int | None:
    """How often the host waits for the GPU within the job; None where there is none."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            job()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
