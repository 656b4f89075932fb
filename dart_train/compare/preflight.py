"""Everything about a comparison that can be wrong and is cheap to find out: told in one message, before any model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Found
from ..recipe import Problem, QuestionSet, Recipe, RecipeError, load_recipe
from .cells import Cell, cells_of, checkpoints_of
from .named import look
from .questions import Question, metrics_of

NEEDS = ("compare.sets",)
_CHOOSING = ("compare.methods", "compare.budgets", "compare.checkpoints", "reduction")


@dataclass(frozen=True)
class Prepared:
    recipe: Recipe
    cells: list[Cell]
    questions: list[Question]
    found: dict[str, Found]
    folder: Path
    sets: dict[str, QuestionSet]

    @property
    def paths(self) -> dict[str, str]:
        return checkpoints_of(self.recipe)

    def cells_at(self, checkpoint: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.checkpoint == checkpoint]


def open_recipe(path: str | Path, overrides: Iterable[str] = (), progress: bool = True) -> Recipe:
    """Where the recipe is wrong, all that is wrong with what it names is told along with that."""
    try:
        return load_recipe(path, overrides, NEEDS)
    except RecipeError as error:
        if error.read is None or not all(checkpoints_of(error.read).values()):
            raise
        sound = not any(problem.path.startswith(_CHOOSING) for problem in error.problems)  # or there are no rows
        more = look(error.read, cells_of(error.read) if sound else [], progress).told.problems
        raise RecipeError([*error.problems, *(Problem("", each) for each in more)], error.source) from error


def prepare(recipe: Recipe, progress: bool = True) -> Prepared:
    """Raises ValueError with all that is wrong."""
    cells, folder = cells_of(recipe), Path(recipe.compare.output_dir)
    named = look(recipe, cells, progress)
    named.told.of(lambda: folder.mkdir(parents=True, exist_ok=True), "compare.output_dir")
    named.told.check("this cannot be compared")
    return Prepared(recipe, cells, named.questions, named.found, folder, metrics_of(recipe))
