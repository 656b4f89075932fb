"""The entries of `compare.methods`: a method, or several stages that form one method, measured at every budget.

    dart                                                  the method of this name
    {method: dart, text_pivots: 0, name: unguided}        with options, and optionally a name for the tables
    {name: pyramid, stages: [{method: dart, layer: 2, keep: 0.5}, {method: dart, layer: 8, keep: 0.222}]}
    {method: dart, merge: nearest, budgets: [0.111]}      at these budgets instead of compare.budgets
    {method: learned, checkpoints: [adapted]}             with these checkpoints alone
    {method: dart, tower: {layer: 4, keep: 0.5}}          with a stage in the vision tower before it
    reduction                                             the recipe's reduction, with all its stages

The budget is what the last stage keeps; earlier stages keep the same multiple of it as in the recipe, at most all.
At budget 0.111 this pyramid keeps 0.25 between the layers 2 and 8, at budget 64 it keeps 144 tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..reduction.budget import Keep, check_keep

if TYPE_CHECKING:
    from ..reduction import Reducer, TowerDART

Given = str | Mapping[str, Any]
REDUCTION_ALIAS = "reduction"
_RESERVED_KEYS = ("name", "stages", "budgets", "tower", "checkpoints")


@dataclass(frozen=True)
class Method:
    """factors: what each stage keeps, as a multiple of the budget; 1 for the last. budgets: empty: compare.budgets.
    tower: a stage in the vision tower, the same at every budget. checkpoints: names of those that are measured with it;
    empty: all."""

    stages: tuple[Reducer, ...]
    factors: tuple[float, ...] = (1.0,)
    budgets: tuple[Keep, ...] = ()
    tower: TowerDART | None = None
    checkpoints: tuple[str, ...] = ()

    def at(self, keep: Keep) -> tuple[Reducer, ...]:
        return tuple(
            replace(stage, keep=_scaled(keep, by)) for stage, by in zip(self.stages, self.factors, strict=True)
        )


def _scaled(keep: Keep, by: float) -> Keep:
    """A float is a ratio, an int a number of tokens: 1.0 is all tokens, 1 is one."""
    return min(1.0, keep * by) if isinstance(keep, float) else max(1, round(keep * by))


def expand_reduction_alias(
    given: Sequence[Given], own: Sequence[Mapping[str, Any]], tower: Mapping[str, Any] | None = None
) -> list[Given]:
    """`given`, with the stages of the recipe's reduction in place of the name `reduction`."""
    alias = {"name": REDUCTION_ALIAS, "stages": list(own)} | ({} if tower is None else {"tower": tower})
    return [alias if each == REDUCTION_ALIAS else each for each in given]


def read_method(given: Given) -> Method:
    """Raises ValueError with all that is wrong. Imports torch."""
    if isinstance(given, str):
        return Method((_reducer({"method": given}),))
    budgets = _own_budgets(given["budgets"]) if "budgets" in given else ()
    tower = _tower(given["tower"]) if "tower" in given else None
    checkpoints = _own_checkpoints(given["checkpoints"]) if "checkpoints" in given else ()
    if "stages" in given:
        return replace(_staged(given), budgets=budgets, tower=tower, checkpoints=checkpoints)
    if "keep" in given:
        raise ValueError("keep: every method is measured at compare.budgets; leave it out, or give it `budgets`")
    options = {key: value for key, value in given.items() if key not in _RESERVED_KEYS}
    return Method((_reducer(options),), budgets=budgets, tower=tower, checkpoints=checkpoints)


def _own_checkpoints(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list | tuple) or not given or not all(isinstance(name, str) for name in given):
        raise ValueError(f"checkpoints: given {given!r}, expected a list of names of compare.checkpoints")
    return tuple(given)


def _own_budgets(given: Any) -> tuple[Keep, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"budgets: given {given!r}, expected a list of ratios or numbers of tokens")
    wrong = [problem for keep in given if (problem := check_keep(keep))]
    if wrong:
        raise ValueError("budgets: " + "; ".join(wrong))
    return tuple(given)


def _tower(given: Any) -> TowerDART:
    from ..reduction import tower_from_config

    if not isinstance(given, Mapping):
        raise ValueError(f"tower: given {given!r}, expected a mapping such as {{layer: 4, keep: 0.5}}")
    return tower_from_config(given)


def _reducer(config: Any) -> Reducer:
    from ..reduction import from_config

    return from_config(config)


def _staged(given: Mapping[str, Any]) -> Method:
    unknown, stages = [str(key) for key in given if key not in _RESERVED_KEYS], given["stages"]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: unknown key next to stages; write it into each stage")
    if not isinstance(stages, Sequence) or isinstance(stages, str) or not stages:
        raise ValueError(f"stages: given {stages!r}, expected a list of mappings, each with method, layer and keep")
    wrong = [f"stages.{number}: {fault}" for number, stage in enumerate(stages) if (fault := _stage_error(stage))]
    if wrong:
        raise ValueError("; ".join(wrong))
    made = tuple(_reducer(stage) for stage in stages)
    return Method(made, _stage_ratios([stage.keep for stage in made]))


def _stage_error(stage: Any) -> str | None:
    from ..reduction import FewerPixels, KeepAll

    if not isinstance(stage, Mapping):
        return f"given {stage!r}, expected a mapping with method, layer and keep"
    try:
        made = _reducer(stage)
    except ValueError as error:
        return str(error)
    if isinstance(made, FewerPixels | KeepAll):
        return f"{made.name} drops no tokens, it cannot be a stage"
    return None if "keep" in stage else "keep is missing: what the stage keeps, in proportion to the last one"


def _stage_ratios(keeps: Sequence[Keep]) -> tuple[float, ...]:
    """The ratio of each stage's budget to that of the last stage."""
    if len({type(keep) for keep in keeps}) > 1:
        raise ValueError(f"stages keep {_listed(keeps)}: expected only ratios or only numbers of tokens")
    if list(keeps) != sorted(keeps, reverse=True):
        raise ValueError(f"stages keep {_listed(keeps)}: expected each to keep at most as much as the stage before it")
    return tuple(keep / keeps[-1] for keep in keeps)


def _listed(keeps: Sequence[Keep]) -> str:
    return ", ".join(f"{keep:g}" for keep in keeps)


def labels(given: Sequence[Given]) -> list[str]:
    """Names for tables: those of methods that occur more than once contain their options."""
    count = Counter(_name(each) for each in given)
    return [_name(each) if count[_name(each)] == 1 else _with_options(each) for each in given]


def duplicate_labels(given: Sequence[Given]) -> Iterator[tuple[int, str]]:
    """(index, label) of each method with the label of an earlier one."""
    names = labels(given)
    yield from ((index, label) for index, label in enumerate(names) if label in names[:index])


def _name(given: Given) -> str:
    if isinstance(given, str):
        return given.rsplit(":", 1)[-1]
    if "stages" in given and not given.get("name"):
        return " then ".join(f"{_name(stage)} at {stage.get('layer', 'its layer')}" for stage in given["stages"])
    return str(given.get("name") or given["method"]).rsplit(":", 1)[-1]


def _with_options(given: Given) -> str:
    options = {} if isinstance(given, str) else {k: v for k, v in given.items() if k not in ("method", *_RESERVED_KEYS)}
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{_name(given)} ({words})" if words else _name(given)
