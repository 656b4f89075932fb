"""All that a comparison found, for whoever writes or draws it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .cells import Cell
from .journal import Line
from .preflight import Prepared
from .questions import Question
from .table import Entry, Group, Pair, entries, groups, pairs
from .timing import Cost


@dataclass(frozen=True)
class Results:
    """lines: as in results.jsonl, cell after cell; costs: none where nothing was timed."""

    prepared: Prepared
    lines: list[Line]
    costs: list[Cost]

    @property
    def folder(self) -> Path:
        return self.prepared.folder

    @property
    def cells(self) -> list[Cell]:
        return self.prepared.cells

    @property
    def seed(self) -> int:
        return self.prepared.recipe.compare.seed

    @cached_property
    def questions(self) -> dict[tuple[str, str], Question]:
        return {(question.set, question.id): question for question in self.prepared.questions}

    @cached_property
    def groups(self) -> list[Group]:
        return groups(self.lines, self.prepared.recipe.compare, self.prepared.sets)

    @cached_property
    def entries(self) -> list[Entry]:
        return list(entries(self.groups, self.lines, self.seed))

    @cached_property
    def pairs(self) -> list[Pair]:
        return pairs(self.groups, self.seed)
