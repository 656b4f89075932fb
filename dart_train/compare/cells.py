"""The rows of a comparison: checkpoints x methods x budgets, and each checkpoint once with full tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..budget import Keep
from ..recipe import Recipe
from ..reducers import KeepAll, Reducer, from_config

FULL = "full"
BASE = "base"


@dataclass(frozen=True)
class Cell:
    """reducer None: full tokens."""

    checkpoint: str
    method: str
    keep: Keep
    reducer: Reducer | None = field(hash=False)  # a stranger's options may be lists

    @property
    def budget(self) -> str:
        """As it stands in the tables: `full`, a ratio such as 0.111, or a number of tokens such as 64."""
        return FULL if _is_full(self.keep) else f"{self.keep:g}"

    @property
    def name(self) -> str:
        return f"{self.checkpoint} / {self.method}" + (f" / {self.budget}" if self.reducer is not None else "")


def checkpoints_of(recipe: Recipe) -> dict[str, str]:
    """Name: folder or hub id."""
    return dict(recipe.compare.checkpoints) or {BASE: recipe.model.path}


def cells_of(recipe: Recipe) -> list[Cell]:
    found = []
    for checkpoint in checkpoints_of(recipe):
        found.append(Cell(checkpoint, FULL, 1.0, None))
        for label, bare in methods_of(recipe).items():
            keeps = [1.0] if isinstance(bare, KeepAll) and bare.name == KeepAll.name else _budgets(recipe)
            found += [Cell(checkpoint, label, keep, replace(bare, keep=keep)) for keep in keeps]
    return found


def _budgets(recipe: Recipe) -> list[Keep]:
    """Once each, full tokens apart, in the order of the recipe."""
    found = {(type(keep), keep): keep for keep in recipe.compare.budgets if not _is_full(keep)}
    return list(found.values())


def methods_of(recipe: Recipe) -> dict[str, Reducer]:
    """By their labels. A method that is named alone has the options of the recipe's reduction where that is the same
    method, and its layer where it is another."""
    given, trained = recipe.compare.methods, recipe.reduction.reducers()
    made = [_method(each, trained) for each in given]
    often = Counter(_name(each) for each in given)
    labels = [_name(each) if often[_name(each)] == 1 else _told(each) for each in given]
    return dict(zip(labels, made, strict=True))


def _method(given: str | Mapping[str, Any], trained: Sequence[Reducer]) -> Reducer:
    if not isinstance(given, str):
        return from_config(given)
    bare = from_config({"method": given})
    if len(trained) != 1:
        return bare
    return trained[0] if type(trained[0]) is type(bare) else replace(bare, layer=trained[0].layer, per=trained[0].per)


def _name(given: str | Mapping[str, Any]) -> str:
    method = given if isinstance(given, str) else str(given["method"])
    return method.rsplit(":", 1)[-1]


def _told(given: str | Mapping[str, Any]) -> str:
    """A method that stands in the recipe more than once is told apart by its options."""
    options = {} if isinstance(given, str) else {key: value for key, value in given.items() if key != "method"}
    words = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{_name(given)} ({words})" if words else _name(given)


def _is_full(keep: Keep) -> bool:
    return isinstance(keep, float) and keep == 1.0
