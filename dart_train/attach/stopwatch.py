"""What the choice of tokens takes, noted where it happens and read when somebody asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Off until it is wanted. On a GPU events go along with the work, so that nothing waits for it before `read`;
    what the host does ahead of the device then costs nothing, and is not counted."""

    def __init__(self) -> None:
        self.on = False
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        if not self.on:
            yield
        elif device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    def read(self) -> float:
        """Seconds since the last reading. Waits for a GPU."""
        found, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        for begin, end in events:
            end.synchronize()
            found += begin.elapsed_time(end) / 1e3
        return found
