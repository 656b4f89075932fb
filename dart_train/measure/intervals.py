"""How sure a number is: 95% intervals."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

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
