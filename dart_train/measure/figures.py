"""One figure of a table: a number, how many questions it rests on, and its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .intervals import bootstrap, wilson
from .metrics import Metric


@dataclass(frozen=True)
class Figure:
    value: float
    low: float
    high: float
    n: int

    def apart_from(self, other: Figure) -> bool:
        """Whether the intervals do not overlap."""
        return self.low > other.high or other.low > self.high


def figure(metric: Metric, scores: Iterable[float], seed: int = 0) -> Figure | None:
    """None where there is no question that the metric can judge."""
    given = np.array(list(scores), dtype=float)
    if not given.size:
        return None
    value = float(metric.pool(given))
    if metric.share:
        low, high = wilson(round(float(given.sum())), given.size)
    else:
        low, high = bootstrap(given, metric.pool, seed)
    return Figure(value, low, high, given.size)


def scores_of(metric: Metric, said: Sequence[tuple[str, Sequence[str]]]) -> list[float | None]:
    """One score for each (prediction, answers)."""
    return [metric.score(prediction, answers) for prediction, answers in said]
