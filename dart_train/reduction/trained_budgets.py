"""The budgets that a model was trained at, as recorded with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .budget import Keep

FULL: tuple[Keep, ...] = (1.0,)


@dataclass(frozen=True)
class TrainedBudgets:
    """choices: each step had one of them, a budget for each stage. low, high: with one stage, the range of ratios
    that steps drew from. Neither: trained with full tokens."""

    choices: tuple[tuple[Keep, ...], ...] = ()
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, reduction: Any) -> TrainedBudgets:
        """From the `reduction` section of a recipe, as `Recipe.to_dict` writes it."""
        if not isinstance(reduction, Mapping):
            return cls()
        stages = reduction.get("stages", [reduction])
        schedule = reduction.get("schedule") or {}
        if schedule.get("kind") == "elastic":
            return cls(tuple((keep,) for keep in schedule["choices"]))
        if schedule.get("kind") == "progressive":
            dropped_most = max(schedule["start_high"], schedule["end_high"])
            dropped_least = min(schedule["start_low"], schedule["end_low"])
            return cls(low=1.0 - dropped_most, high=1.0 - dropped_least)
        return cls((tuple(stage.get("keep", 1.0) for stage in stages),))

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> TrainedBudgets:
        return cls(tuple(tuple(choice) for choice in content["choices"]), content["low"], content["high"])

    def to_dict(self) -> dict[str, Any]:
        return {"choices": [list(choice) for choice in self.choices], "low": self.low, "high": self.high}

    def include(self, keep: Sequence[Keep]) -> bool:
        """Whether the model was trained at `keep`, a budget for each stage."""
        served = FULL if _is_full(keep) else tuple(keep)
        if self.low is not None and self.high is not None:
            ratio = served[0] if len(served) == 1 and isinstance(served[0], float) else math.nan
            return self.low - 1e-9 <= ratio <= self.high + 1e-9
        trained = [FULL if _is_full(choice) else choice for choice in self.choices or (FULL,)]
        return any(len(t) == len(served) and all(map(_same, t, served)) for t in trained)

    def __str__(self) -> str:
        if self.low is not None:
            return f"{self.low:.3g} to {self.high:.3g} of the visual tokens"
        return describe_budgets(self.choices or (FULL,))


def describe_budgets(choices: Sequence[Sequence[Keep]]) -> str:
    """As text, such as `full tokens, 0.5 of the tokens`; the budgets of several stages are joined by `then`."""
    unit = {float: "of the tokens", int: "tokens"}
    reduced = [
        " then ".join(f"{keep:.3g} {unit[type(keep)]}" for keep in choice) for choice in choices if not _is_full(choice)
    ]
    return ", ".join([*(["full tokens"] * any(map(_is_full, choices))), *reduced])


def _is_full(choice: Sequence[Keep]) -> bool:
    return all(_same(keep, 1.0) for keep in choice)


def _same(one: Keep, other: Keep) -> bool:
    """1 is one token, 1.0 all of them."""
    return isinstance(one, float) == isinstance(other, float) and math.isclose(one, other)
