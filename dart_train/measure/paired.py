"""Two rows of answers to the same questions: is one better, or does it look so by chance?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log

import numpy as np

from .intervals import LEVEL, resampled
from .metrics import Metric


@dataclass(frozen=True)
class Difference:
    """value: the second less the first, with its interval; gained, lost: questions where its score is higher, lower;
    p: how often chance alone would make such a difference. test: by which test."""

    value: float
    low: float
    high: float
    n: int
    gained: int
    lost: int
    p: float
    test: str


def difference(metric: Metric, first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference | None:
    """Scores of the same questions in the same order; None where there are none. Shares are tested by McNemar's exact
    test, all else by a paired bootstrap; the interval is the bootstrap's in both cases."""
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores: expected scores of the same questions")
    if not first:
        return None
    both = np.array([first, second], dtype=float)
    drawn = resampled(both, metric.pool, seed)
    apart = drawn[:, 1] - drawn[:, 0]
    low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    marks = both if metric.name != "yes_no_f1" else _right_cases(both)
    gained, lost = int((marks[1] > marks[0]).sum()), int((marks[1] < marks[0]).sum())
    value = float(np.subtract(*metric.pool(both)[::-1]))
    p = mcnemar(gained, lost) if metric.share else _two_sided(apart)
    test = "McNemar, exact" if metric.share else "paired bootstrap"
    return Difference(value, float(low), float(high), both.shape[1], gained, lost, p, test)


def mcnemar(gained: int, lost: int) -> float:
    """Exact and two-sided: of the questions that only one of both answers right, as many on one side by a fair
    coin."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    tail = sum(np.exp(_log_choose(total, k) - total * log(2)) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail))


def holm(ps: Sequence[float]) -> list[float]:
    """Each p after Holm's correction for having asked so many questions at once."""
    order, worst, found = sorted(range(len(ps)), key=lambda i: ps[i]), 0.0, [0.0] * len(ps)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, ps[i] * (len(ps) - rank)))
        found[i] = worst
    return found


def _two_sided(apart: np.ndarray) -> float:
    """Of a bootstrapped difference; never 0, as so many draws cannot say more."""
    below, above = int((apart <= 0).sum()), int((apart >= 0).sum())
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(apart) + 1)))


def _right_cases(cases: np.ndarray) -> np.ndarray:
    """Of the four cases of yes and no, those that are right."""
    return ((cases == 0) | (cases == 3)).astype(float)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
