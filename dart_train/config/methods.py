"""`compare.methods`: one method, or several stages of them as one, each measured at every budget.

    dart                                                  by its name
    {method: dart, text_pivots: 0, name: unguided}        with options; a name of one's own where it is given
    {name: pyramid, stages: [{method: dart, layer: 2, keep: 0.5}, {method: dart, layer: 8, keep: 0.222}]}
    {method: dart, merge: nearest, budgets: [0.111]}      at budgets of its own in place of compare.budgets
    reduction                                             the recipe's own reduction, all stages of it

The budget is what the last stage keeps, and earlier stages keep their proportion to it: this pyramid at 0.111 has 0.25
in the layers between, at 64 tokens it has 144. More than all is all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..reduction.budget import Keep, check_keep

if TYPE_CHECKING:
    from ..reduction import Reducer

Given = str | Mapping[str, Any]
OWN = "reduction"
_OURS = ("name", "stages", "budgets")


@dataclass(frozen=True)
class Method:
    """times: how much more than the budget each stage keeps, 1 for the last. budgets: none: compare.budgets."""

    stages: tuple[Reducer, ...]
    times: tuple[float, ...] = (1.0,)
    budgets: tuple[Keep, ...] = ()

    def at(self, keep: Keep) -> tuple[Reducer, ...]:
        return tuple(replace(stage, keep=_scaled(keep, by)) for stage, by in zip(self.stages, self.times, strict=True))


def _scaled(keep: Keep, by: float) -> Keep:
    """1.0 is all tokens, 1 is one of them."""
    return min(1.0, keep * by) if isinstance(keep, float) else max(1, round(keep * by))


def expand_reduction_alias(given: Sequence[Given], own: Sequence[Mapping[str, Any]]) -> list[Given]:
    """`reduction` replaced by the stages it stands for."""
    return [{"name": OWN, "stages": list(own)} if each == OWN else each for each in given]


def read_method(given: Given) -> Method:
    """Raises ValueError."""
    if isinstance(given, str):
        return Method((_reducer({"method": given}),))
    budgets = _own_budgets(given["budgets"]) if "budgets" in given else ()
    if "stages" in given:
        return replace(_staged(given), budgets=budgets)
    if "keep" in given:
        raise ValueError("keep: every method is measured at compare.budgets; leave it out, or give budgets of its own")
    options = {key: value for key, value in given.items() if key not in _OURS}
    return Method((_reducer(options),), budgets=budgets)


def _own_budgets(given: Any) -> tuple[Keep, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"budgets: given {given!r}, expected a list of ratios or numbers of tokens")
    wrong = [problem for keep in given if (problem := check_keep(keep))]
    if wrong:
        raise ValueError("budgets: " + "; ".join(wrong))
    return tuple(given)


def _reducer(config: Any) -> Reducer:
    from ..reduction import from_config

    return from_config(config)


def _staged(given: Mapping[str, Any]) -> Method:
    strange, stages = [str(key) for key in given if key not in _OURS], given["stages"]
    if strange:
        raise ValueError(f"{', '.join(strange)}: unknown beside stages; write it into each stage")
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
        raise ValueError(f"stages: given {stages!r}, expected a list of mappings, each with method, layer and keep")
    wrong = [f"stages.{number}: {fault}" for number, stage in enumerate(stages) if (fault := _fault(stage))]
    if wrong:
        raise ValueError("; ".join(wrong))
    made = tuple(_reducer(stage) for stage in stages)
    return Method(made, _times([stage.keep for stage in made]))


def _fault(stage: Any) -> str | None:
    from ..reduction import FewerPixels, KeepAll

    if not isinstance(stage, Mapping):
        return f"given {stage!r}, expected a mapping with method, layer and keep"
    try:
        made = _reducer(stage)
    except ValueError as error:
        return str(error)
    if isinstance(made, FewerPixels | KeepAll):
        return f"{made.name} drops no tokens, so that it cannot be a stage"
    return None if "keep" in stage else "keep is missing: what the stage keeps, in proportion to the last one"


def _times(keeps: Sequence[Keep]) -> tuple[float, ...]:
    """Of each stage's budget to the last one's."""
    if len({type(keep) for keep in keeps}) > 1:
        raise ValueError(f"stages keep {_told(keeps)}: expected ratios alone or numbers alone, as only they compare")
    if list(keeps) != sorted(keeps, reverse=True):
        raise ValueError(f"stages keep {_told(keeps)}: expected each to keep at most what the one before it does")
    return tuple(keep / keeps[-1] for keep in keeps)


def _told(keeps: Sequence[Keep]) -> str:
    return ", ".join(f"{keep:g}" for keep in keeps)


def labels(given: Sequence[Given]) -> list[str]:
    """A method that stands in the recipe more than once is told apart by its options."""
    often = Counter(_name(each) for each in given)
    return [_name(each) if often[_name(each)] == 1 else _with_options(each) for each in given]


def duplicate_labels(given: Sequence[Given]) -> Iterator[tuple[int, str]]:
    """Which methods are called as one before them is."""
    told = labels(given)
    yield from ((number, label) for number, label in enumerate(told) if label in told[:number])


def _name(given: Given) -> str:
    if isinstance(given, str):
        return given.rsplit(":", 1)[-1]
    if "stages" in given and not given.get("name"):
        return " then ".join(f"{_name(stage)} at {stage.get('layer', 'its layer')}" for stage in given["stages"])
    return str(given.get("name") or given["method"]).rsplit(":", 1)[-1]


def _with_options(given: Given) -> str:
    options = {} if isinstance(given, str) else {k: v for k, v in given.items() if k not in ("method", *_OURS)}
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{_name(given)} ({words})" if words else _name(given)
