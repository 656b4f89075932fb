"""What answers are worth, how sure that is, and whether two rows of answers differ: numbers only, no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt

import numpy as np

from .metrics import Metric

# How sure a number is: 95% intervals.

Interval = tuple[float, float]
LEVEL = 0.95
_Z = 1.959963984540054  # standard deviations that LEVEL of a normal distribution lie within
RESAMPLES = 2000
_ROWS = 4_000_000  # scores drawn at a time, so that memory stays small


def wilson(right: int, asked: int) -> Interval:
    """Of a share: holds for few questions, and for shares near 0 and 1."""
    if asked < 1 or not 0 <= right <= asked:
        raise ValueError(f"{right} right of {asked} asked: expected 0 <= right <= asked, and at least one question")
    p, z = right / asked, _Z
    middle, spread = p + z * z / (2 * asked), z * sqrt(p * (1 - p) / asked + (z / (2 * asked)) ** 2)
    scale = 1 + z * z / asked
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding may not put the share outside


def bootstrap(scores: np.ndarray, pool: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Interval:
    """Of any pooled number: percentiles over questions drawn again with replacement. scores [..., n]."""
    pooled = resampled(scores, pool, seed)
    low, high = np.quantile(pooled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled(scores: np.ndarray, pool: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray:
    """[RESAMPLES, ...] what `pool` makes of scores [..., n], the same draw for all that stands before n."""
    number, chance = scores.shape[-1], np.random.default_rng(seed)
    if number < 1:
        raise ValueError("no scores were given, expected at least one")
    at_once = max(1, _ROWS // max(1, scores.size))
    found = []
    for start in range(0, RESAMPLES, at_once):
        draws = chance.integers(number, size=(min(at_once, RESAMPLES - start), number))
        found.append(pool(np.moveaxis(scores[..., draws], -2, 0)))
    return np.concatenate(found)


# Two rows of answers to the same questions: is one better, or does it look so by chance?


@dataclass(frozen=True)
class PairedDifference:
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


def difference(
    metric: Metric, first: Sequence[float], second: Sequence[float], seed: int = 0
) -> PairedDifference | None:
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
    return PairedDifference(value, float(low), float(high), both.shape[1], gained, lost, p, test)


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


# One figure of a table: a number, how many questions it rests on, and its interval.


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float
    n: int

    def disjoint_from(self, other: Estimate) -> bool:
        """Whether the intervals do not overlap."""
        return self.low > other.high or other.low > self.high


def figure(metric: Metric, scores: Iterable[float], seed: int = 0) -> Estimate | None:
    """None where there is no question that the metric can judge."""
    given = np.array(list(scores), dtype=float)
    if not given.size:
        return None
    value = float(metric.pool(given))
    if metric.share:
        low, high = wilson(round(float(given.sum())), given.size)
    else:
        low, high = bootstrap(given, metric.pool, seed)
    return Estimate(value, low, high, given.size)


def scores_of(metric: Metric, said: Sequence[tuple[str, Sequence[str]]]) -> list[float | None]:
    """One score for each (prediction, answers)."""
    return [metric.score(prediction, answers) for prediction, answers in said]
