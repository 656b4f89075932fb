"""Confidence intervals and paired tests for scores of questions; no model, numbers only."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt

import numpy as np

from .metrics import TRUE_NEGATIVE, TRUE_POSITIVE, Metric

Interval = tuple[float, float]
CONFIDENCE = 0.95
SIGNIFICANT = 0.05  # a difference with a smaller p is reported as significant
RESAMPLES = 2000
_Z = 1.959963984540054  # standard deviations that contain CONFIDENCE of a normal distribution
_SCORES_AT_ONCE = 4_000_000  # resampled scores in memory at a time


@dataclass(frozen=True)
class Estimate:
    """An aggregated score of `n` questions with its 95% interval."""

    value: float
    low: float
    high: float
    n: int

    def disjoint_from(self, other: Estimate) -> bool:
        """Whether the intervals do not overlap."""
        return self.low > other.high or other.low > self.high


@dataclass(frozen=True)
class PairedDifference:
    """The second row's score minus the first's on the same `n` questions, with its 95% interval.

    gained, lost: questions that the second row scores higher, lower. p: of the test named in `test`, two-sided.
    """

    value: float
    low: float
    high: float
    n: int
    gained: int
    lost: int
    p: float
    test: str

    @property
    def significant(self) -> bool:
        return self.p < SIGNIFICANT


def estimate(metric: Metric, scores: Iterable[float], seed: int = 0) -> Estimate | None:
    """Wilson's interval for proportions, the bootstrap's for other metrics; None without scores."""
    given = np.array(list(scores), dtype=float)
    if not given.size:
        return None
    value = float(metric.aggregate(given))
    if metric.is_proportion:
        low, high = wilson(round(float(given.sum())), given.size)
    else:
        low, high = bootstrap(given, metric.aggregate, seed)
    return Estimate(value, low, high, given.size)


def paired_difference(
    metric: Metric, first: Sequence[float], second: Sequence[float], seed: int = 0
) -> PairedDifference | None:
    """first, second: scores of the same questions in the same order; None without scores.

    Proportions are tested with McNemar's exact test, other metrics with a paired bootstrap. The interval is the
    bootstrap's in both cases.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores were given, expected scores of the same questions")
    if not first:
        return None
    both = np.array([first, second], dtype=float)
    drawn = resample(both, metric.aggregate, seed)
    differences = drawn[:, 1] - drawn[:, 0]
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    correct = both if metric.name != "yes_no_f1" else ((both == TRUE_POSITIVE) | (both == TRUE_NEGATIVE)).astype(float)
    gained, lost = int((correct[1] > correct[0]).sum()), int((correct[1] < correct[0]).sum())
    value = float(np.subtract(*metric.aggregate(both)[::-1]))
    p = mcnemar(gained, lost) if metric.is_proportion else _bootstrap_p(differences)
    test = "McNemar, exact" if metric.is_proportion else "paired bootstrap"
    return PairedDifference(value, float(low), float(high), both.shape[1], gained, lost, p, test)


def wilson(correct: int, total: int) -> Interval:
    """Interval of a proportion; also valid for few questions and for proportions near 0 and 1."""
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}: expected 0 <= correct <= total and a total of at least 1")
    p, z = correct / total, _Z
    middle, spread = p + z * z / (2 * total), z * sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    low, high = (middle - spread) / scale, (middle + spread) / scale
    return max(0.0, min(p, low)), min(1.0, max(p, high))  # rounding must not put the proportion outside


def bootstrap(scores: np.ndarray, aggregate: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Interval:
    """Percentile interval over questions resampled with replacement. scores: [n]."""
    low, high = np.quantile(resample(scores, aggregate, seed), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def resample(scores: np.ndarray, aggregate: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray:
    """scores [..., n] -> [RESAMPLES, ...]: the aggregate of each resample, the same questions for all leading axes."""
    number, generator = scores.shape[-1], np.random.default_rng(seed)
    if number < 1:
        raise ValueError("no scores were given, expected at least one")
    at_once = max(1, _SCORES_AT_ONCE // max(1, scores.size))
    found = []
    for start in range(0, RESAMPLES, at_once):
        draws = generator.integers(number, size=(min(at_once, RESAMPLES - start), number))
        found.append(aggregate(np.moveaxis(scores[..., draws], -2, 0)))
    return np.concatenate(found)


def clustered_interval(values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0) -> Interval:
    """Of the mean of values, resampling clusters with all of their values: questions about one image depend on it."""
    if len(values) != len(clusters) or not values:
        raise ValueError(
            f"{len(values)} values and {len(clusters)} clusters were given, expected as many, at least one"
        )
    number = {cluster: n for n, cluster in enumerate(dict.fromkeys(clusters))}
    sums, sizes = np.zeros(len(number)), np.zeros(len(number))
    for value, cluster in zip(values, clusters, strict=True):
        sums[number[cluster]] += value
        sizes[number[cluster]] += 1
    draws = np.random.default_rng(seed).integers(len(number), size=(RESAMPLES, len(number)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: of the questions that only one row answers correctly, each side is a fair coin toss."""
    total, fewer = gained + lost, min(gained, lost)
    if total == 0:
        return 1.0
    tail = sum(np.exp(_log_choose(total, k) - total * log(2)) for k in range(fewer + 1))
    return float(min(1.0, 2 * tail))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction of several p values for testing all of them."""
    order, largest, found = sorted(range(len(ps)), key=lambda i: ps[i]), 0.0, [0.0] * len(ps)
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(ps) - rank)))
        found[i] = largest
    return found


def _bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of resampled differences; never 0, because the number of resamples bounds it."""
    below, above = int((differences <= 0).sum()), int((differences >= 0).sum())
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
