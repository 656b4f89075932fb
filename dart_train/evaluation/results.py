"""What a comparison found: answers and costs, and the scores and tests that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .answer_store import AnswerRecord
from .comparison_grid import ComparisonCell, PreparedComparison
from .cost import CellCost
from .questions import Question
from .scoring import PairedTest, ScoreGroup, ScoreRow, paired_tests, score_groups, score_rows


@dataclass(frozen=True)
class ComparisonResults:
    """Everything that a comparison found. records: as in results.jsonl, cell by cell; costs: empty without timing."""

    prepared: PreparedComparison
    records: list[AnswerRecord]
    costs: list[CellCost]

    @property
    def folder(self) -> Path:
        return self.prepared.folder

    @property
    def cells(self) -> list[ComparisonCell]:
        return self.prepared.cells

    @property
    def seed(self) -> int:
        return self.prepared.recipe.compare.seed

    @cached_property
    def questions(self) -> dict[tuple[str, str], Question]:
        """The questions by (set, id)."""
        return {(question.set, question.id): question for question in self.prepared.questions}

    @cached_property
    def groups(self) -> list[ScoreGroup]:
        return score_groups(self.records, self.prepared.recipe.compare, self.prepared.sets)

    @cached_property
    def scores(self) -> list[ScoreRow]:
        return list(score_rows(self.groups, self.records, self.seed))

    @cached_property
    def pairs(self) -> list[PairedTest]:
        return paired_tests(self.groups, self.seed)
