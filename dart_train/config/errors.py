"""What is wrong with a recipe: every mistake with its path, all of them in one exception."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipe import Recipe

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class Problem:
    """One mistake: where, what is wrong there, and what to do."""

    path: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return where + self.what + (f"; {self.remedy}" if self.remedy else "")


class RecipeError(ValueError):
    """All problems of a recipe at once. read: the recipe as far as it could be read, with defaults where it could
    not, for those who look on at what it names."""

    def __init__(self, problems: Sequence[Problem], source: str = "recipe", read: Recipe | None = None) -> None:
        self.problems, self.source, self.read = tuple(problems), source, read
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))


def expected(path: str, given: object, words: str, remedy: str = "") -> Problem:
    return Problem(path, f"given {_SHORT.repr(given)}, expected {words}", remedy)


def unknown(path: str, key: object, known: Sequence[str], places: Iterable[str] = ()) -> Problem:
    """`key` is not one of `known` at `path`; `places` are all paths of the recipe, for a key gone astray."""
    near = difflib.get_close_matches(str(key), known, n=1)
    astray = sorted((p for p in places if p.rsplit(".", 1)[-1] == key), key=lambda p: p.count("."))
    guess = join(path, near[0]) if near else astray[0] if astray else ""
    remedy = f"did you mean {guess}?" if guess else f"known here: {', '.join(known)}"
    return Problem(join(path, key), "unknown key", remedy)


def join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
