"""Counters and histograms of a server, in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """Observations counted by upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> Iterator[str]:
        seen = 0
        for bound, count in zip([*(f"{bound:g}" for bound in self.bounds), "+Inf"], self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{le="{bound}"}} {seen}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {seen}"


class ServerMetrics:
    """Written by the event loop and by the thread that generates."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: Counter[int] = Counter()  # by HTTP status; 499: the client has gone
        self.prompt_tokens = self.visual_tokens = self.kept_visual_tokens = self.generated_tokens = 0
        self.first_token = Histogram(SECONDS)
        self.request_time = Histogram(SECONDS)
        self.batch_size = Histogram(SIZES)

    def count_prompts(self, tokens: int, visual: int, kept: int) -> None:
        """Of one batch: tokens in, the visual ones among them, and how many of these were kept."""
        with self._lock:
            self.prompt_tokens += tokens
            self.visual_tokens += visual
            self.kept_visual_tokens += kept

    def count_answer(self, status: int, tokens: int, seconds: float, first_token: float | None) -> None:
        """Of one request: its end. first_token: seconds from its arrival; None: there was none."""
        with self._lock:
            self.requests[status] += 1
            self.generated_tokens += tokens
            self.request_time.observe(seconds)
            if first_token is not None:
                self.first_token.observe(first_token)

    def count_batch(self, size: int) -> None:
        with self._lock:
            self.batch_size.observe(size)

    def page(self, waiting: int, running: int) -> str:
        with self._lock:
            return "\n".join(self._lines(waiting, running)) + "\n"

    def _lines(self, waiting: int, running: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "requests that have ended, by HTTP status")
        yield from (f'dart_train_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.requests.items()))
        for name, value, what in (
            ("prompt_tokens_total", self.prompt_tokens, "tokens in, with those of images, before the reduction"),
            ("visual_tokens_total", self.visual_tokens, "visual tokens in, before the reduction"),
            ("kept_visual_tokens_total", self.kept_visual_tokens, "visual tokens that the reduction kept"),
            ("generated_tokens_total", self.generated_tokens, "tokens out"),
        ):
            yield from _head(name, "counter", what)
            yield f"dart_train_{name} {value}"
        for name, value, what in (
            ("requests_waiting", waiting, "requests that wait for a batch"),
            ("requests_running", running, "requests of the batch that is generated now"),
        ):
            yield from _head(name, "gauge", what)
            yield f"dart_train_{name} {value}"
        for name, histogram, what in (
            ("time_to_first_token_seconds", self.first_token, "from the arrival of a request to its first token"),
            ("request_seconds", self.request_time, "from the arrival of a request to its end"),
            ("batch_size", self.batch_size, "requests generated together"),
        ):
            yield from _head(name, "histogram", what)
            yield from histogram.lines(f"dart_train_{name}")


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP dart_train_{name} {what}"
    yield f"# TYPE dart_train_{name} {kind}"
