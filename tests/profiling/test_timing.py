"""Timing: interleaved rounds, warm-up, ratios round by round, contexts that are not timed, the clocks."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

from dart_train.profiling import timing
from dart_train.profiling.timing import (
    Clock,
    Timing,
    WithContext,
    host_syncs,
    interleaved,
    ratio,
    rounds,
    time_once,
)

CPU = torch.device("cpu")


def test_repeats_are_interleaved_after_a_warm_up() -> None:
    calls: list[str] = []
    workloads = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    timings = interleaved(workloads, CPU, repeats=3, seconds=10)
    assert "".join(calls) == "ab" + "ab" * 3
    assert all(found.repeats == 3 and found.warm for found in timings.values())


def test_slow_workloads_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def takes(workload: Any, device: torch.device) -> float:
        calls.append(workload)
        return float(workload)

    monkeypatch.setattr(timing, "time_once", takes)
    workloads: dict[str, Any] = {"fast": 0.01, "slow": 0.4, "too slow": 1.5}
    timings = interleaved(workloads, CPU, repeats=6, seconds=1.0)
    assert calls == [0.01, 0.4, 1.5] + [0.01, 0.4] * 2 + [0.01] * 4
    assert timings["fast"].repeats == 6 and timings["slow"] == Timing(0.4, 0.4, 0.4, 2)
    assert timings["too slow"] == Timing(1.5, 1.5, 1.5, 1, warm=False)


def test_median_and_quartiles() -> None:
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(3.0, 2.0, 4.0, 5)
    assert Timing.of([2.0], warm=False) == Timing(2.0, 2.0, 2.0, 1, False)


def test_ratios_are_taken_round_by_round() -> None:
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == Timing(2.0, 2.0, 2.5, 3)


def test_context_of_a_workload_is_not_timed() -> None:
    events: list[str] = []

    class Around(AbstractContextManager[None]):
        def __enter__(self) -> None:
            events.append("enter")
            time.sleep(0.1)

        def __exit__(self, *error: object) -> None:
            events.append("exit")

    workload = WithContext(Around, lambda: events.append("run"))
    assert 0 <= time_once(workload, CPU) < 0.09 and events == ["enter", "run", "exit"]
    first, times = rounds({"a": workload}, CPU, 2, 10.0)
    assert set(first) == {"a"} and len(times["a"]) == 2


def test_cpu_clock_does_not_count_sleep() -> None:
    clock = Clock()
    clock.count_cpu_time()
    start = clock.read()
    time.sleep(0.2)
    assert clock.read() - start < 0.15


def test_host_syncs_are_not_counted_without_a_gpu() -> None:
    assert host_syncs(lambda: pytest.fail("not called"), CPU) is None
