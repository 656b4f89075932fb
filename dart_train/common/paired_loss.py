"""An exact test that a change loses less than a margin: paired right and wrong answers, no approximation.

Of n independent questions, the change loses some (right before, wrong after) and gains others (the reverse). The loss
is d = P(lost) - P(gained), and the null hypothesis is d >= margin. The statistic is T = lost - gained.

Why the p value is valid. T is a sum of n values in {-1, 0, 1}; its distribution depends on d and on the share of
questions that change at all, c = P(lost) + P(gained), which the null hypothesis leaves open. For a given c, a larger d
makes T stochastically larger, so P(T <= t) is largest at d = margin, the border of the null hypothesis. There, c may
be anything in [margin, 1], and the supremum over all of it would be needlessly pessimistic. Berger and Boos (JASA 89,
1994) allow a supremum over a confidence set of c, if the probability that the set misses c is added to the p value:

    p = sup { P(T <= t | d = margin, c) : margin <= c <= upper } + missed

with `upper` the exact (Clopper and Pearson) upper bound of c at confidence 1 - missed, from the number of questions
that changed; missed is alpha / 10, fixed before the data. If the null hypothesis holds with c <= upper, the first term
is at least P(T <= t) at the truth, so it is at most alpha - missed with at most that probability; c > upper has
probability at most missed. Where upper < margin the set is empty and p is missed alone, as d <= c. The
Hoeffding-Bentkus bound of Learn then Test (arXiv 2110.01052) holds for any values in [-1, 1], and needs several times
as many questions, because it cannot use that few answers change.

The supremum is computed, not searched on a grid: on an interval [a, b] of c, P(lost) >= (a + margin) / 2 and
P(gained) <= (b - margin) / 2, and with these two T is stochastically smallest. That bounds the interval from above, and
intervals are halved until the bound is close to a value that is attained.
"""

from __future__ import annotations

import functools
import heapq
from math import exp, log

import numpy as np

_MISSED = 0.1  # share of alpha that is spent on not knowing how many questions change
PRECISION = 0.02  # of the supremum, as a share of alpha
_RESOLUTION = 1e-4  # of a bound of the loss
_MOST_INTERVALS = 2000
_ROUNDING = 1e-9  # of the transform below; in the direction of a larger p


@functools.cache
def loss_p_value(lost: int, gained: int, number: int, margin: float, alpha: float = 0.05) -> float:
    """p of "the loss is at least `margin`" (a share, such as 0.02), for a test at level alpha; small: the loss is
    smaller. number: of all questions, changed or not."""
    _check(lost, gained, number, margin, alpha)
    missed = _MISSED * alpha
    upper = _upper_bound(lost + gained, number, missed)
    if upper < margin:
        return missed
    return min(1.0, _largest_tail(lost - gained, number, margin, upper, alpha) + missed)


@functools.cache
def loss_bound(lost: int, gained: int, number: int, alpha: float) -> float:
    """The loss is below this with confidence 1 - alpha: the smallest margin that the test rejects. 1.0: none is."""
    low, high = max(0.0, (lost - gained) / number), 1.0
    if loss_p_value(lost, gained, number, high, alpha) > alpha:
        return 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        if middle > 0 and loss_p_value(lost, gained, number, middle, alpha) <= alpha:
            high = middle
        else:
            low = middle
    return high


def questions_needed(margin: float, alpha: float) -> int:
    """The fewest questions with which a change that alters no answer passes the test."""
    least, enough = 0, 1
    while loss_p_value(0, 0, enough, margin, alpha) > alpha:
        least, enough = enough, 2 * enough
    while enough - least > 1:
        middle = (least + enough) // 2
        if loss_p_value(0, 0, middle, margin, alpha) <= alpha:
            enough = middle
        else:
            least = middle
    return enough


def _check(lost: int, gained: int, number: int, margin: float, alpha: float) -> None:
    if number < 1 or lost < 0 or gained < 0 or lost + gained > number:
        raise ValueError(f"{lost} lost and {gained} gained of {number} questions: expected counts of their answers")
    if not 0 < margin <= 1:
        raise ValueError(f"margin={margin!r}: expected a share above 0 and at most 1")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha!r}: expected a probability between 0 and 1")


def _largest_tail(statistic: int, number: int, margin: float, upper: float, alpha: float) -> float:
    """An upper bound of P(T <= statistic) over margin <= c <= upper: tight where it decides a test at level alpha,
    within a tenth where it is far above."""

    def bound(low: float, high: float) -> float:
        return _tail(statistic, number, (low + margin) / 2, (high - margin) / 2)

    attained = max(bound(margin, margin), bound(upper, upper))
    intervals = [(-bound(margin, upper), margin, upper)]
    for _ in range(_MOST_INTERVALS):
        highest, low, high = heapq.heappop(intervals)
        if -highest <= attained + (PRECISION * alpha if attained <= 2 * alpha else attained / 10):
            return max(-highest, attained)
        middle = (low + high) / 2
        attained = max(attained, bound(middle, middle))
        for part in ((low, middle), (middle, high)):
            heapq.heappush(intervals, (-bound(*part), *part))
    return max(-intervals[0][0], attained)


def _tail(statistic: int, number: int, lost: float, gained: float) -> float:
    """P(T <= statistic) where each of `number` questions is lost or gained with these probabilities: the n-fold
    convolution of their distribution, by a Fourier transform that is long enough not to wrap around."""
    size = 1 << (2 * number + 1).bit_length()
    one = np.zeros(size)
    one[:3] = gained, max(0.0, 1.0 - lost - gained), lost  # T = -1, 0, 1
    distribution = np.fft.irfft(np.fft.rfft(one) ** number, size)  # of T + number
    return float(min(1.0, max(0.0, distribution[: statistic + number + 1].sum()) + _ROUNDING))


def _upper_bound(count: int, number: int, missed: float) -> float:
    """Clopper and Pearson's upper bound of a share at confidence 1 - missed, `count` of `number` seen."""
    if count == number:
        return 1.0
    if count == 0:
        return 1.0 - exp(log(missed) / number)
    low, high = count / number, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if _binomial_tail(count, number, middle) > missed:
            low = middle
        else:
            high = middle
    return high


def _binomial_tail(count: int, number: int, share: float) -> float:
    """P(at most `count` of `number`)."""
    k = np.arange(count + 1)
    logs = _log_factorials(number)
    terms = logs[number] - logs[k] - logs[number - k] + k * log(share) + (number - k) * np.log1p(-share)
    return float(np.exp(terms).sum())


@functools.lru_cache(maxsize=4)
def _log_factorials(number: int) -> np.ndarray:
    """[number + 1] log(k!)."""
    return np.concatenate([[0.0], np.log(np.arange(1, number + 1)).cumsum()])
