"""The first screen: does the answer stay right, and what was dropped?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from ..answer_store import AnswerRecord
from ..comparison_grid import FULL
from ..results import ComparisonResults
from ..scoring import CellKey, ScoreRow, cell_key
from .findings import budget_words, keeps_accuracy, primary_rows
from .regressions import TokenImages, is_correct

QUESTIONS = 6
_OTHERS = 2  # methods shown next to the best one
_WIDTH = 216  # pixels of a panel


@dataclass(frozen=True)
class GlancePanel:
    title: str
    image: Image.Image | None
    answer: str
    correct: bool


@dataclass(frozen=True)
class GlanceQuestion:
    text: str
    answers: str
    kind: str
    panels: Sequence[GlancePanel]


@dataclass(frozen=True)
class Glance:
    """both, lost, gained, neither: questions by whether full tokens and the best cell answer them correctly."""

    headline: str
    text: Markup
    both: int
    lost: int
    gained: int
    neither: int
    questions: Sequence[GlanceQuestion]
    has_scorer: bool

    @property
    def total(self) -> int:
        return self.both + self.lost + self.gained + self.neither


def glance_of(results: ComparisonResults, images: TokenImages) -> Glance | None:
    """None where nothing was reduced."""
    rows = primary_rows(results)
    best = _best(rows)
    if best is None:
        return None
    metric, full = best.metric, next(row for row in rows if row.cell == (best.cell[0], FULL, FULL))
    cells = [full.cell, best.cell, *_others(rows, best)]
    by_question: dict[str, dict[CellKey, AnswerRecord]] = {}
    for record in results.records:
        if record["set"] == best.set and cell_key(record) in cells:
            by_question.setdefault(record["id"], {})[cell_key(record)] = record
    complete = [found for found in by_question.values() if full.cell in found and best.cell in found]
    outcomes = [tuple(is_correct(metric, found[cell]) for cell in (full.cell, best.cell)) for found in complete]
    shown = [_question(found, cells, metric, images) for found in _drawn(complete, full.cell)]
    return Glance(
        headline=f"{100 * best.score.value:.1f}% right with {100 * (best.kept or 0):.3g}% of the visual tokens",
        text=_text(best, full),
        both=outcomes.count((True, True)),
        lost=outcomes.count((True, False)),
        gained=outcomes.count((False, True)),
        neither=outcomes.count((False, False)),
        questions=shown,
        has_scorer=any("scored_tokens" in record for found in complete for record in found.values()),
    )


def _best(rows: Sequence[ScoreRow]) -> ScoreRow | None:
    """Of the last checkpoint with such a cell: the one with the fewest tokens that keeps the accuracy of full tokens.
    Where none does, the one with the best score."""
    reduced = [row for row in rows if row.from_full is not None and row.kept is not None and row.kept < 1]
    good = [row for row in reduced if row.from_full is not None and keeps_accuracy(row.from_full)]
    if good:
        last = good[-1].cell[0]
        return min((row for row in good if row.cell[0] == last), key=lambda row: (row.kept or 0.0, -row.score.value))
    return max(reduced, key=lambda row: row.score.value, default=None)


def _others(rows: Sequence[ScoreRow], best: ScoreRow) -> list[CellKey]:
    """Other methods of the same checkpoint at the same budget."""
    checkpoint, method, budget = best.cell
    cells = [row.cell for row in rows if (row.cell[0], row.cell[2]) == (checkpoint, budget) and row.cell[1] != method]
    return list(dict.fromkeys(cells))[:_OTHERS]


def _text(best: ScoreRow, full: ScoreRow) -> Markup:
    assert best.from_full is not None
    low, high = 100 * best.from_full.low, 100 * best.from_full.high
    text = "<b>{}</b>, method <b>{}</b>, {}. All tokens: {:.1f}%, so {:+.1f} points ({:+.1f} to {:+.1f})."
    return Markup(text).format(
        best.cell[0], best.cell[1], budget_words(best.cell[2]), 100 * full.score.value, 100 * best.from_full.value,
        low, high,
    )  # fmt: skip


def _drawn(found: Sequence[dict[CellKey, AnswerRecord]], full: CellKey) -> list[dict[CellKey, AnswerRecord]]:
    """Questions with an image, drawn by a hash whatever their answers: of each kind one, then a second one, ..."""
    with_images = [each for each in found if each[full]["visual_tokens"]]
    order = sorted(with_images, key=lambda each: hashlib.blake2b(each[full]["key"].encode(), digest_size=8).digest())
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, dict[CellKey, AnswerRecord]]] = []
    for each in order:
        kind = each[full]["kind"]
        seen[kind] = seen.get(kind, 0) + 1
        turns.append((seen[kind], len(turns), each))
    return [each for _, _, each in sorted(turns, key=lambda turn: turn[:2])][:QUESTIONS]


def _question(
    found: dict[CellKey, AnswerRecord], cells: Sequence[CellKey], metric: str, images: TokenImages
) -> GlanceQuestion:
    first = found[cells[0]]
    panels = [
        GlancePanel(
            "all tokens" if cell[1] == FULL else cell[1],
            images.panel(found[cell], title="", width=_WIDTH),
            found[cell]["prediction"],
            is_correct(metric, found[cell]),
        )
        for cell in cells
        if cell in found
    ]
    answers = " or ".join(dict.fromkeys(first["answers"]))
    return GlanceQuestion(first["question"], answers, first["kind"], panels)
