"""The answers of the comparisons of the base of pretrained parts: scores, differences, the places of kept tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dart_train.common.metrics import METRICS
from dart_train.common.statistics import Estimate, PairedDifference, estimate, paired_difference
from dart_train.evaluation.answer_store import RESULTS, from_ranges

METRIC = METRICS["exact_match"]
FULL = "full"
Scores = dict[str, float]  # question -> score


class Cell(NamedTuple):
    """One model with one method at one budget, on one set of questions."""

    set: str
    checkpoint: str
    method: str = FULL
    budget: str = FULL


class ComparedAnswers:
    """The answers in the results.jsonl of one or more comparisons."""

    def __init__(self, folders: Iterable[Path]) -> None:
        files = [folder / RESULTS for folder in folders]
        if missing := [str(file.parent) for file in files if not file.exists()]:
            raise ValueError(f"{', '.join(missing)}: no {RESULTS}, expected the folder of a finished comparison")
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.scores: dict[Cell, Scores] = {}
        for record in self.records:
            score = METRIC.score(record["prediction"], record["answers"])
            assert score is not None
            self.scores.setdefault(_cell_of(record), {})[record["id"]] = score

    def score(self, cell: Cell, questions: Iterable[str] | None = None) -> Estimate | None:
        """On all questions, or on the given ones."""
        if cell not in self.scores:
            return None
        scores = self.scores[cell]
        return estimate(METRIC, scores.values() if questions is None else [scores[each] for each in questions])

    def difference(self, cell: Cell, against: Cell) -> PairedDifference:
        """On the same questions; the two cells may be of different checkpoints."""
        first, second = self.scores[against], self.scores[cell]
        if first.keys() != second.keys():
            raise ValueError(f"{' / '.join(cell)} and {' / '.join(against)} answered different questions")
        found = paired_difference(METRIC, list(first.values()), [second[question] for question in first])
        assert found is not None
        return found

    def kinds(self, name: str) -> dict[str, list[str]]:
        """Kind -> the questions of this kind in a set."""
        kinds: dict[str, dict[str, None]] = {}
        for record in self.records:
            if record["set"] == name and record.get("kind"):
                kinds.setdefault(record["kind"], {})[record["id"]] = None
        return {kind: list(questions) for kind, questions in sorted(kinds.items())}

    def late_share(self, cell: Cell) -> float:
        """The share of the kept visual tokens that are in the last half of the image's."""
        kept, late = 0, 0
        for record in self.records:
            if _cell_of(record) == cell:
                places = from_ranges(record["kept_tokens"])
                kept += len(places)
                late += sum(place >= record["visual_tokens"] / 2 for place in places)
        return late / kept


def _cell_of(record: Mapping[str, Any]) -> Cell:
    return Cell(record["set"], record["checkpoint"], record["method"], record["budget"])
