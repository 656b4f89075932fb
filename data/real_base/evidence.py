"""The page of claims and tables of the base of pretrained parts, from the answers of its comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dart_train.common.statistics import Estimate
from dart_train.common.tables import markdown_table

from .answers import Cell, ComparedAnswers
from .claims import CLAIMS, NAMED, NAMES, TEXTS

BUDGETS = ("0.5", "0.222", "0.111", "0.056")
Source = tuple[str, str]  # checkpoint, method
CHECKPOINTS = {
    "base": "base", "scorer_2": "base", "control": "control", "control_scorer": "control", "adapted": "adapted to DART",
    "adapted_scorer": "adapted to DART", "learned": "adapted to the scorer's choice",
}  # fmt: skip
WITH_SCORER = ("scorer_2", "control_scorer", "adapted_scorer")  # at full tokens as without it
METHODS = {"dart": "DART", "random": "random", "pooling": "pooling", "fastv": "FastV"}
OWN_SCORER = "trained scorer"
SOURCES: dict[Source, str] = {
    **{("base", method): title for method, title in METHODS.items()},
    ("base", "dart_merged"): "DART, merged", ("base", "dart_unguided"): "DART without text pivots",
    ("scorer_2", "learned"): OWN_SCORER,
    **{("control", method): title for method, title in METHODS.items()}, ("control_scorer", "learned"): OWN_SCORER,
    **{("adapted", method): title for method, title in METHODS.items()}, ("adapted_scorer", "learned"): OWN_SCORER,
    ("learned", "learned"): OWN_SCORER,
}  # fmt: skip
LAYERS = {0: "dart_0", 1: "dart_1", 2: "dart", 4: "dart_4", 8: "dart_8"}  # K -> DART with it


def write_evidence(compared: Sequence[Path], out: Path, measured: Mapping[str, Any]) -> str:
    """claims.md in `out`. compared: folders of comparisons. measured: the scores next to the trained weights."""
    answers = ComparedAnswers(compared)
    right, asked = measured["seen"]["what"]
    parts = [
        "# Claims and tables",
        _claims(answers, right, asked),
        "Differences are in points, with 95% intervals of paired questions. All tables: exact match in percent with "
        "95% Wilson intervals, by method and budget, at K = 2 unless it says otherwise.",
        "## Names",
        "Questions of the kind `what`.",
        _methods(answers, NAMES),
        "DART on the base, by K and budget:",
        _layers(answers),
        "Share of the kept tokens that are in the second half of the visual tokens, the lower half of the image, in "
        "percent; of all tokens it is 50:",
        _late(answers),
        "## Texts",
        "Labels, price tags and notes.",
        _methods(answers, TEXTS),
        "At 11.1% of the tokens, by the kind of question:",
        _kinds(answers, "0.111"),
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


def _methods(answers: ComparedAnswers, questions: str) -> str:
    """Methods without any answer are left out."""
    rows = []
    for checkpoint, title in CHECKPOINTS.items():
        full = answers.score(Cell(questions, checkpoint))
        if full is not None and checkpoint not in WITH_SCORER:
            rows.append([title, "full tokens", _percent(full), *[""] * len(BUDGETS)])
        for (of, method), name in SOURCES.items():
            scores = [answers.score(Cell(questions, of, method, budget)) for budget in BUDGETS]
            if of == checkpoint and any(scores):
                rows.append([title, name, "", *map(_percent, scores)])
    return markdown_table(["model", "method", "100%", *(f"{100 * float(b):g}%" for b in BUDGETS)], rows)


def _kinds(answers: ComparedAnswers, budget: str) -> str:
    kinds, rows = answers.kinds(TEXTS), []
    cells = [(Cell(TEXTS, name), "full tokens") for name in CHECKPOINTS if name not in WITH_SCORER]
    cells += [(Cell(TEXTS, *source, budget), title) for source, title in SOURCES.items()]
    for checkpoint in CHECKPOINTS:
        for cell, title in cells:
            if cell.checkpoint == checkpoint and cell in answers.scores:
                scores = [_percent(answers.score(cell, questions)) for questions in kinds.values()]
                rows.append([CHECKPOINTS[checkpoint], title, *scores])
    return markdown_table(["model", "method", *(f"{kind}, n = {len(ids)}" for kind, ids in kinds.items())], rows)


def _layers(answers: ComparedAnswers) -> str:
    cells = {k: [Cell(NAMES, "base", name, budget) for budget in BUDGETS] for k, name in LAYERS.items()}
    rows = [
        [str(k), *(_percent(answers.score(cell)) for cell in of)]
        for k, of in cells.items()
        if any(cell in answers.scores for cell in of)
    ]
    return markdown_table(["K", *(f"{100 * float(b):g}%" for b in BUDGETS)], rows)


def _late(answers: ComparedAnswers) -> str:
    rows = [
        [CHECKPOINTS[source[0]], title, f"{100 * answers.late_share(cell):.1f}"]
        for source, title in SOURCES.items()
        if source[1] != "pooling" and (cell := Cell(NAMES, *source, "0.111")) in answers.scores
    ]
    return markdown_table(["model", "method", "11.1%"], rows)


def _percent(found: Estimate | None) -> str:
    return "" if found is None else f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"
