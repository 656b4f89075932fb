"""The rows of a comparison: checkpoints x methods x budgets, and each checkpoint once with full tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..budget import Keep
from ..recipe import Recipe
from ..recipe.methods import Given, Method, labels, read_method, spelt_out
from ..reducers import KeepAll, Reducer

FULL = "full"
BASE = "base"


@dataclass(frozen=True)
class Cell:
    """stages: of the reduction; none: full tokens."""

    checkpoint: str
    method: str
    keep: Keep
    stages: tuple[Reducer, ...] = field(hash=False)  # a stranger's options may be lists

    @property
    def reducer(self) -> Reducer | None:
        """The only stage; None where there is none, or several."""
        return self.stages[0] if len(self.stages) == 1 else None

    @property
    def budget(self) -> str:
        """As it stands in the tables: `full`, a ratio such as 0.111, or a number of tokens such as 64."""
        return FULL if _is_full(self.keep) else f"{self.keep:g}"

    @property
    def name(self) -> str:
        return f"{self.checkpoint} / {self.method}" + (f" / {self.budget}" if self.stages else "")


def checkpoints_of(recipe: Recipe) -> dict[str, str]:
    """Name: folder or hub id."""
    return dict(recipe.compare.checkpoints) or {BASE: recipe.model.path}


def cells_of(recipe: Recipe) -> list[Cell]:
    found = []
    for checkpoint in checkpoints_of(recipe):
        found.append(Cell(checkpoint, FULL, 1.0, ()))
        for label, method in methods_of(recipe).items():
            whole, budgets = method.stages[0].name == KeepAll.name, method.budgets or recipe.compare.budgets
            keeps = [1.0] if whole else _distinct(budgets)
            found += [Cell(checkpoint, label, keep, method.at(keep)) for keep in keeps]
    return found


def _distinct(budgets: Sequence[Keep]) -> list[Keep]:
    """Once each, full tokens apart, in the order of the recipe."""
    found = {(type(keep), keep): keep for keep in budgets if not _is_full(keep)}
    return list(found.values())


def methods_of(recipe: Recipe) -> dict[str, Method]:
    """By their labels. A method that is named alone has the options of the recipe's reduction where that is the same
    method, and its layer where it is another."""
    given, trained = spelt_out(recipe.compare.methods, recipe.reduction.stages), recipe.reduction.reducers()
    return dict(zip(labels(given), (_method(each, trained) for each in given), strict=True))


def _method(given: Given, trained: Sequence[Reducer]) -> Method:
    method = read_method(given)
    if not isinstance(given, str) or len(trained) != 1:
        return method
    (bare,), (own,) = method.stages, trained
    return Method((own if type(own) is type(bare) else replace(bare, layer=own.layer, per=own.per),))


def _is_full(keep: Keep) -> bool:
    return isinstance(keep, float) and keep == 1.0
