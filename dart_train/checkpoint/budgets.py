"""The budgets a model was trained at, so that serving it at another one is said and not found out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..budget import Keep

FULL: tuple[Keep, ...] = (1.0,)


class UntrainedBudget(UserWarning):
    """The model is served at a budget that it was not trained at."""


@dataclass(frozen=True)
class Budgets:
    """choices: the budgets of all stages, of which each step had one; or, with one stage, the range of ratios that
    steps drew from. No choice and no range: trained with full tokens."""

    choices: tuple[tuple[Keep, ...], ...] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, reduction: Any) -> Budgets:
        """From the `reduction` section of a recipe, as `Recipe.to_dict` writes it."""
        if not isinstance(reduction, Mapping):
            return cls()
        stages = reduction.get("stages", [reduction])
        schedule = reduction.get("schedule") or {}
        if schedule.get("kind") == "elastic":
            return cls(tuple((keep,) for keep in schedule["choices"]))
        if schedule.get("kind") == "progressive":
            lowest, highest = (1.0 - schedule[f"{end}_{side}"] for end, side in _ends(schedule))
            return cls(low=lowest, high=highest)
        return cls((tuple(stage.get("keep", 1.0) for stage in stages),))

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Budgets:
        return cls(tuple(tuple(choice) for choice in plain["choices"]), plain["low"], plain["high"])

    def to_dict(self) -> dict[str, Any]:
        return {"choices": [list(choice) for choice in self.choices], "low": self.low, "high": self.high}

    def include(self, keep: Sequence[Keep]) -> bool:
        """Whether `keep`, a budget for each stage, is one of those."""
        served = FULL if all(_same(k, 1.0) for k in keep) else tuple(keep)
        if self.low is not None and self.high is not None:
            ratio = served[0] if len(served) == 1 and isinstance(served[0], float) else math.nan
            return self.low - 1e-9 <= ratio <= self.high + 1e-9
        trained = [FULL if all(_same(k, 1.0) for k in choice) else choice for choice in self.choices or (FULL,)]
        return any(len(t) == len(served) and all(map(_same, t, served)) for t in trained)

    def __str__(self) -> str:
        if self.low is not None:
            return f"{self.low:.3g} to {self.high:.3g} of the visual tokens"
        return told(self.choices or (FULL,))


def told(choices: Sequence[Sequence[Keep]]) -> str:
    """Budgets as a person says them; those of several stages follow each other."""
    full = [all(_same(each, 1.0) for each in choice) for choice in choices]
    words = [_words(choice) for choice, whole in zip(choices, full, strict=True) if not whole]
    return ", ".join([*(["full tokens"] * any(full)), *words])


def _words(choice: Sequence[Keep]) -> str:
    unit = {float: "of the tokens", int: "tokens"}
    return " then ".join(f"{each:.3g} {unit[type(each)]}" for each in choice)


def _same(one: Keep, other: Keep) -> bool:
    """1 is one token, 1.0 all of them."""
    return isinstance(one, float) == isinstance(other, float) and math.isclose(one, other)


def _ends(schedule: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Which fields hold the greatest and the least dropped share."""
    most = max(("start", "end"), key=lambda end: schedule[f"{end}_high"])
    least = min(("start", "end"), key=lambda end: schedule[f"{end}_low"])
    return [(most, "high"), (least, "low")]
