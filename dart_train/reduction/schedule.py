"""How the budget moves over training: pure functions of the optimizer step, so that a resumed run draws again what
the uninterrupted one drew, and every rank draws the same."""

from __future__ import annotations

import numpy as np

from ..config import Distill, Elastic, Progressive, Schedule
from .budget import Keep

FULL: Keep = 1.0
_LEAST = 1e-6  # a ratio above zero: at least one token stays


def budget_at_step(schedule: Schedule, served: Keep, step: int, steps: int, seed: int) -> Keep:
    """The budget of optimizer step `step`, counted from 0, of `steps`. served: that of the recipe's stage."""
    if isinstance(schedule, Elastic):
        return schedule.choices[int(_random(seed, step).randint(len(schedule.choices)))]
    if isinstance(schedule, Progressive):
        low, high = dropped_range(schedule, step, steps)
        return max(_LEAST, 1.0 - float(_random(seed, step).uniform(low, high)))
    return served


def dropped_range(schedule: Progressive, step: int, steps: int) -> tuple[float, float]:
    """(least, most) share of the visual tokens that step `step` may drop."""
    return (
        between(schedule.start_low, schedule.end_low, step, steps),
        between(schedule.start_high, schedule.end_high, step, steps),
    )


def teacher_keep(distill: Distill, student: Keep, visual: int, step: int, steps: int) -> Keep:
    """The teacher's budget where the student keeps `student` of `visual` tokens: all, or a gap more of them."""
    if distill.teacher == "full":
        return FULL
    share = student if isinstance(student, float) else min(1.0, student / max(visual, 1))
    return min(FULL, share + between(distill.gap_start, distill.gap_end, step, steps))


def between(start: float, end: float, step: int, steps: int) -> float:
    """`start` at the first step, `end` at the last, a straight line between them."""
    return start + (end - start) * (min(step, steps - 1) / max(steps - 1, 1))


def _random(seed: int, step: int) -> np.random.RandomState:
    # RandomState, because NumPy promises that its numbers never change; Generator's may, between versions.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, step])))
