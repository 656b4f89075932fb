"""The claims about the base of pretrained parts, evaluated on the answers of one comparison.

They were written before any test question was evaluated; data/results/real/README.md has them in words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_train.common.metrics import METRICS
from dart_train.common.statistics import Estimate, PairedDifference, estimate, paired_difference
from dart_train.common.tables import markdown_table
from dart_train.evaluation.answer_store import from_ranges

METRIC = METRICS["exact_match"]
FULL = "full"
BUDGETS = ("0.5", "0.222", "0.111", "0.056")
Source = tuple[str, str]  # checkpoint, method
Cell = tuple[str, str, str]  # checkpoint, method, budget
CHECKPOINTS = {
    "base": "base", "scorer_2": "base with scorer", "scorer_8": "base with scorer", "control": "control",
    "adapted": "adapted to DART", "learned": "adapted to the scorer's choice",
}  # fmt: skip
SCORERS = ("scorer_2", "scorer_8")  # at full tokens they are the base
METHODS = {"dart": "DART", "random": "random", "pooling": "pooling", "fastv": "FastV"}
SOURCES: dict[Source, str] = {
    **{(model, method): title for model in ("base", "control", "adapted") for method, title in METHODS.items()},
    ("base", "dart_merged"): "DART, merged", ("base", "dart_unguided"): "DART without text pivots",
    ("scorer_2", "learned_2"): "its choice, K = 2", ("scorer_8", "learned_8"): "its choice, K = 8",
    ("learned", "learned_8"): "the scorer's choice, K = 8",
}  # fmt: skip
LAYERS = {0: "dart_0", 1: "dart_1", 2: "dart", 4: "dart_4", 8: "dart_8"}  # K -> DART with it
Scores = dict[str, float]  # question -> score


@dataclass(frozen=True)
class Claim:
    """`cell` less `against`: the difference, or its 95% interval, is where `holds` says."""

    text: str
    cell: Cell
    against: Cell
    holds: Callable[[PairedDifference], bool]


NAMED = 0.8  # of seen things, at full tokens
CLAIMS = (
    Claim(
        "DART at 22.2% loses at most 10 points", ("base", "dart", "0.222"), ("base", FULL, FULL),
        lambda found: found.value >= -0.1,
    ),
    Claim(
        "DART above random at 11.1%", ("base", "dart", "0.111"), ("base", "random", "0.111"),
        lambda found: found.low > 0,
    ),
    Claim(
        "FastV below random at 11.1%", ("base", "fastv", "0.111"), ("base", "random", "0.111"),
        lambda found: found.value < 0,
    ),
    Claim(
        "DART at K = 8 no worse than at K = 2, 11.1%", ("base", "dart_8", "0.111"), ("base", "dart", "0.111"),
        lambda found: found.value >= 0,
    ),
    Claim(
        "trained scorer above DART at K = 8, 11.1%", ("scorer_8", "learned_8", "0.111"), ("base", "dart_8", "0.111"),
        lambda found: found.low > 0,
    ),
    Claim(
        "DART on the adapted model above DART on the base, 11.1%", ("adapted", "dart", "0.111"),
        ("base", "dart", "0.111"), lambda found: found.low > 0,
    ),
    Claim(
        "DART on the adapted model above DART on the control, 11.1%", ("adapted", "dart", "0.111"),
        ("control", "dart", "0.111"), lambda found: found.low > 0,
    ),
    Claim(
        "adapted model loses at most 5 points against the control, both at full tokens", ("adapted", FULL, FULL),
        ("control", FULL, FULL), lambda found: found.value >= -0.05,
    ),
    Claim(
        "DART at 22.2% on the adapted model loses at most 20 points against the control at full tokens",
        ("adapted", "dart", "0.222"), ("control", FULL, FULL), lambda found: found.value >= -0.2,
    ),
    Claim(
        "model adapted to the scorer's choice above the base with it, 11.1%", ("learned", "learned_8", "0.111"),
        ("scorer_8", "learned_8", "0.111"), lambda found: found.low > 0,
    ),
    Claim(
        "model adapted to the scorer's choice loses at most 10 points at 11.1% against the control at full tokens",
        ("learned", "learned_8", "0.111"), ("control", FULL, FULL), lambda found: found.value >= -0.1,
    ),
    Claim(
        "trained scorer above DART at K = 2, 11.1%", ("scorer_2", "learned_2", "0.111"), ("base", "dart", "0.111"),
        lambda found: found.low > 0,
    ),
)  # fmt: skip


class ComparedAnswers:
    """The answers in the results.jsonl of a comparison."""

    def __init__(self, folder: Path) -> None:
        lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.scores: dict[Cell, Scores] = {}
        for record in self.records:
            score = METRIC.score(record["prediction"], record["answers"])
            assert score is not None
            self.scores.setdefault(_cell_of(record), {})[record["id"]] = score

    def score(self, cell: Cell) -> Estimate | None:
        return estimate(METRIC, self.scores[cell].values()) if cell in self.scores else None

    def difference(self, cell: Cell, against: Cell) -> PairedDifference:
        """On the same questions; the two cells may be of different checkpoints."""
        first, second = self.scores[against], self.scores[cell]
        if first.keys() != second.keys():
            raise ValueError(f"{' / '.join(cell)} and {' / '.join(against)} answered different questions")
        found = paired_difference(METRIC, list(first.values()), [second[question] for question in first])
        assert found is not None
        return found

    def late_share(self, cell: Cell) -> float:
        """The share of the kept visual tokens that are in the last half of the image's."""
        kept, late = 0, 0
        for record in self.records:
            if _cell_of(record) == cell:
                places = from_ranges(record["kept_tokens"])
                kept += len(places)
                late += sum(place >= record["visual_tokens"] / 2 for place in places)
        return late / kept


def write_evidence(compared: Path, out: Path, measured: Mapping[str, Any]) -> str:
    """claims.md in `out`. compared: a comparison's folder. measured: the scores next to the trained weights."""
    answers = ComparedAnswers(compared)
    right, asked = measured["seen"]["what"]
    parts = [
        "# Claims and tables",
        _claims(answers, right, asked),
        "Differences are in points, with 95% intervals of paired questions. Exact match of `what` in percent with 95% "
        "Wilson intervals, by method and budget, at K = 2 unless it says otherwise:",
        _methods(answers),
        "DART on the base, by K and budget:",
        _layers(answers),
        "Share of the kept tokens that are in the second half of the visual tokens, the lower half of the image, in "
        "percent; of all tokens it is 50:",
        _late(answers),
    ]
    text = "\n\n".join(parts) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    (out / "claims.md").write_text(text, encoding="utf-8")
    return text


def _claims(answers: ComparedAnswers, right: int, asked: int) -> str:
    rows = [["1. at least 80% of seen things named", f"{100 * right / asked:.1f}", _yes(right / asked >= NAMED)]]
    for number, claim in enumerate(CLAIMS, 2):
        if missing := [" / ".join(cell) for cell in (claim.cell, claim.against) if cell not in answers.scores]:
            rows.append([f"{number}. {claim.text}", f"not evaluated: no answers of {', '.join(missing)}", ""])
            continue
        found = answers.difference(claim.cell, claim.against)
        text = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f}), n = {found.n}"
        rows.append([f"{number}. {claim.text}", text, _yes(claim.holds(found))])
    return markdown_table(["claim", "found", "holds"], rows)


def _methods(answers: ComparedAnswers) -> str:
    """Methods without any answer are left out."""
    rows = []
    for checkpoint, title in CHECKPOINTS.items():
        full = answers.score((checkpoint, FULL, FULL))
        if full is not None and checkpoint not in SCORERS:
            rows.append([title, "full tokens", _percent(full), *[""] * len(BUDGETS)])
        for (of, method), name in SOURCES.items():
            scores = [answers.score((of, method, budget)) for budget in BUDGETS]
            if of == checkpoint and any(scores):
                rows.append([title, name, "", *map(_percent, scores)])
    return markdown_table(["model", "method", "100%", *(f"{100 * float(b):g}%" for b in BUDGETS)], rows)


def _layers(answers: ComparedAnswers) -> str:
    rows = [
        [str(k), *(_percent(answers.score(("base", name, b))) for b in BUDGETS)]
        for k, name in LAYERS.items()
        if any(("base", name, b) in answers.scores for b in BUDGETS)
    ]
    return markdown_table(["K", *(f"{100 * float(b):g}%" for b in BUDGETS)], rows)


def _late(answers: ComparedAnswers) -> str:
    rows = [
        [CHECKPOINTS[source[0]], title, f"{100 * answers.late_share((*source, '0.111')):.1f}"]
        for source, title in SOURCES.items()
        if source[1] != "pooling" and (*source, "0.111") in answers.scores
    ]
    return markdown_table(["model", "method", "11.1%"], rows)


def _cell_of(record: Mapping[str, Any]) -> Cell:
    return record["checkpoint"], record["method"], record["budget"]


def _percent(found: Estimate | None) -> str:
    return "" if found is None else f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
