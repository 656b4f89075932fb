"""The budgets that a recipe's schedule will draw, and how often each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import Elastic, Progressive, Recipe
from ..reduction import Reducer
from ..reduction.budget import Keep
from ..reduction.schedule import budget_at_step, dropped_range

_MOMENTS = 5  # of a progressive run
_DRAWS = 2000  # of an elastic one that are looked at


@dataclass(frozen=True)
class Budget:
    """The stages at one moment of training; share: of the steps that are like it."""

    label: str
    reducers: tuple[Reducer, ...]
    share: float


def budgets_of(recipe: Recipe, steps: int) -> list[Budget]:
    """Of a run of so many steps; none where there is no reduction."""
    reduction, seed = recipe.reduction, recipe.train.seed
    stages, schedule = tuple(reduction.reducers()), reduction.schedule
    if not stages:
        return []
    if isinstance(schedule, Elastic):
        looked_at = range(0, steps, -(-steps // _DRAWS))
        drawn = Counter(budget_at_step(schedule, stages[0].keep, step, steps, seed) for step in looked_at)
        return [_one(stages[0], keep, drawn[keep] / len(looked_at)) for keep in schedule.choices]
    if isinstance(schedule, Progressive):
        return [_one(stages[0], keep, share) for keep, share in _moments(schedule, steps)]
    return [Budget(" + ".join(f"keep {label_of(stage.keep)}" for stage in stages), stages, 1.0)]


def _one(stage: Reducer, keep: Keep, share: float) -> Budget:
    return Budget(f"keep {label_of(keep)}", (replace(stage, keep=keep),), share)


def _moments(schedule: Progressive, steps: int) -> Iterator[tuple[float, float]]:
    """(kept, share of steps): the middle of the range at some moments, and its gentlest end, which decides memory."""
    ranges = [dropped_range(schedule, round((m + 0.5) / _MOMENTS * (steps - 1)), steps) for m in range(_MOMENTS)]
    for low, high in ranges:
        yield round(1 - (low + high) / 2, 4), 1 / _MOMENTS
    yield 1.0 - min(schedule.start_low, schedule.end_low), 0.0


def label_of(keep: Keep) -> str:
    return f"{keep:g}" if isinstance(keep, float) else f"{keep} tokens"
