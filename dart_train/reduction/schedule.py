"""How the budget moves over training: the settings of each schedule, and pure functions of the optimizer step.

A resumed run draws again what the uninterrupted one drew, and every rank draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .budget import Keep

FULL: Keep = 1.0
_SMALLEST_RATIO = 1e-6  # above zero: at least one token stays


@dataclass(frozen=True)
class Fixed:
    """The budget of the stages, at every step."""

    kind: Literal["fixed"] = "fixed"


def _setting(default: Any, description: str, **bounds: float) -> Any:
    """A field whose meaning and bounds are in its metadata, where the schema of recipes reads them."""
    return field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True)
class Progressive:
    """Each step draws the dropped share from a range that moves from `start_*` to `end_*` over training."""

    kind: Literal["progressive"] = "progressive"
    start_low: float = _setting(0.10, "smallest share of tokens dropped at the first step", ge=0, lt=1)
    start_high: float = _setting(0.10, "largest share of tokens dropped at the first step", ge=0, lt=1)
    end_low: float = _setting(0.26, "smallest share of tokens dropped at the last step", ge=0, lt=1)
    end_high: float = _setting(0.74, "largest share of tokens dropped at the last step", ge=0, lt=1)


@dataclass(frozen=True)
class Elastic:
    """Each step draws one of `choices`: one checkpoint for every budget, full tokens included."""

    kind: Literal["elastic"] = "elastic"
    choices: tuple[Keep, ...] = _setting(
        (1.0, 0.5, 0.333, 0.222, 0.111), "budgets to draw from, with equal probability"
    )


Schedule = Fixed | Progressive | Elastic


@dataclass(frozen=True)
class Distill:
    """Token consistency distillation: the same weights at a gentler or a later reduction are the teacher."""

    enabled: bool = _setting(False, "run the layers after the reduction once more in each step, for the teacher")
    teacher: Literal["full", "gap", "reduction"] = _setting(
        "gap", "the teacher sees all tokens, a gap more of them than the student, or has a `reduction` of its own"
    )
    reduction: Mapping[str, Any] | None = _setting(
        None,
        "of teacher: reduction, such as `{method: dart, layer: 2}`: from the student's first layer on; without `keep` "
        "it has the student's budget of each step",
    )
    alpha: float = _setting(0.5, "weight of the teacher's loss; that of the labels is 1 - alpha", ge=0, le=1)
    temperature: float = _setting(2.0, "softens both distributions", gt=0)
    gap_start: float = _setting(0.1, "the gap at the first step, as a share of the visual tokens", ge=0, le=1)
    gap_end: float = _setting(0.3, "the gap at the last step", ge=0, le=1)


def budget_at_step(schedule: Schedule, served: Keep, step: int, steps: int, seed: int) -> Keep:
    """The budget of optimizer step `step` of `steps`, counted from 0. served: the `keep` of the recipe's stage."""
    if isinstance(schedule, Elastic):
        return schedule.choices[int(_random(seed, step).randint(len(schedule.choices)))]
    if isinstance(schedule, Progressive):
        low, high = dropped_range(schedule, step, steps)
        return max(_SMALLEST_RATIO, 1.0 - float(_random(seed, step).uniform(low, high)))
    return served


def tower_keep_at_step(schedule: Schedule, served: float, step: int, steps: int, seed: int) -> float:
    """The ratio of a stage in the vision tower: all, half of the way, or `served` with equal probability where budgets
    are drawn; from all to `served` where they move."""
    if isinstance(schedule, Elastic):
        return (1.0, (1.0 + served) / 2, served)[int(_random(seed, step, 1).randint(3))]
    if isinstance(schedule, Progressive):
        return linear(1.0, served, step, steps)
    return served


def dropped_range(schedule: Progressive, step: int, steps: int) -> tuple[float, float]:
    """(least, most) share of the visual tokens that step `step` may drop."""
    return (
        linear(schedule.start_low, schedule.end_low, step, steps),
        linear(schedule.start_high, schedule.end_high, step, steps),
    )


def teacher_keep(distill: Distill, student: Keep, visual: int, step: int, steps: int) -> Keep:
    """The budget of a teacher without a reduction of its own, where the student keeps `student` of `visual` tokens:
    all, or a gap more of them."""
    if distill.teacher == "full":
        return FULL
    share = student if isinstance(student, float) else min(1.0, student / max(visual, 1))
    return min(FULL, share + linear(distill.gap_start, distill.gap_end, step, steps))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """`start` at the first step, `end` at the last, a straight line between them."""
    return start + (end - start) * (min(step, steps - 1) / max(steps - 1, 1))


def geometric(start: float, end: float, step: int, steps: int) -> float:
    """The same for two positive numbers, in equal ratios from step to step."""
    return math.exp(linear(math.log(start), math.log(end), step, steps))


def _random(seed: int, step: int, *stream: int) -> np.random.RandomState:
    # RandomState, because NumPy promises that its numbers never change; Generator's may, between versions.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, step, *stream])))
