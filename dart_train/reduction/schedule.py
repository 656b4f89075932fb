"""How the budget moves over training: the settings of each schedule, and pure functions of the optimizer step.

A resumed run draws again what the uninterrupted one drew, and every rank draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np

from .budget import Keep, check_keep

FULL: Keep = 1.0
_SMALLEST_RATIO = 1e-6  # above zero: at least one token stays


@dataclass(frozen=True)
class Range:
    """A condition on a value, and the words for it. The reader of recipes checks it."""

    words: str
    holds: Callable[[Any], bool]


Positive = Annotated[float, Range("a number > 0", lambda x: x > 0)]
Fraction = Annotated[float, Range("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Dropped = Annotated[float, Range("a dropped share: a number >= 0 and < 1", lambda x: 0 <= x < 1)]
KeepRange = Annotated[
    int | float,
    Range("a number of tokens (an int >= 1) or a ratio (a float in (0, 1])", lambda k: check_keep(k) is None),
]


@dataclass(frozen=True)
class Fixed:
    """The budget of the stages, at every step."""

    kind: Literal["fixed"] = "fixed"


@dataclass(frozen=True)
class Progressive:
    """Each step draws the dropped share from a range that moves from `start_*` to `end_*` over training."""

    kind: Literal["progressive"] = "progressive"
    start_low: Dropped = 0.10  # share dropped at the first step: at least
    start_high: Dropped = 0.10  # and at most
    end_low: Dropped = 0.26  # share dropped at the last step: at least
    end_high: Dropped = 0.74  # and at most


@dataclass(frozen=True)
class Elastic:
    """Each step draws one of `choices`: one checkpoint for every budget, full tokens included."""

    kind: Literal["elastic"] = "elastic"
    choices: tuple[KeepRange, ...] = (1.0, 0.5, 0.333, 0.222, 0.111)


Schedule = Fixed | Progressive | Elastic


@dataclass(frozen=True)
class Distill:
    """Token consistency distillation: the same weights at a gentler reduction teach."""

    enabled: bool = False  # runs the layers behind the reduction once more in each step
    teacher: Literal["full", "gap"] = "gap"  # sees all tokens, or `gap` more of them than the student
    alpha: Fraction = 0.5  # weight of the teacher; 1 - alpha is the answer's
    temperature: Positive = 2.0  # softens both distributions
    gap_start: Fraction = 0.1  # in shares of the visual tokens, at the first step
    gap_end: Fraction = 0.3  # and at the last


def budget_at_step(schedule: Schedule, served: Keep, step: int, steps: int, seed: int) -> Keep:
    """The budget of optimizer step `step` of `steps`, counted from 0. served: the `keep` of the recipe's stage."""
    if isinstance(schedule, Elastic):
        return schedule.choices[int(_random(seed, step).randint(len(schedule.choices)))]
    if isinstance(schedule, Progressive):
        low, high = dropped_range(schedule, step, steps)
        return max(_SMALLEST_RATIO, 1.0 - float(_random(seed, step).uniform(low, high)))
    return served


def dropped_range(schedule: Progressive, step: int, steps: int) -> tuple[float, float]:
    """(least, most) share of the visual tokens that step `step` may drop."""
    return (
        linear(schedule.start_low, schedule.end_low, step, steps),
        linear(schedule.start_high, schedule.end_high, step, steps),
    )


def teacher_keep(distill: Distill, student: Keep, visual: int, step: int, steps: int) -> Keep:
    """The teacher's budget where the student keeps `student` of `visual` tokens: all, or a gap more of them."""
    if distill.teacher == "full":
        return FULL
    share = student if isinstance(student, float) else min(1.0, student / max(visual, 1))
    return min(FULL, share + linear(distill.gap_start, distill.gap_end, step, steps))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """`start` at the first step, `end` at the last, a straight line between them."""
    return start + (end - start) * (min(step, steps - 1) / max(steps - 1, 1))


def _random(seed: int, step: int) -> np.random.RandomState:
    # RandomState, because NumPy promises that its numbers never change; Generator's may, between versions.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, step])))
