"""The section of a model card that follows from a calibration: which budget is served, and where it breaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.io import atomic_write
from ..common.tables import markdown_table
from ..reduction.reducer_file import read_reducer_file

TITLE = "## Where it breaks"
_BEFORE = "\n## Versions\n"  # the section that follows it in a card


def calibration_section(folder: Path) -> str:
    """From the folder's reducer.json; empty where it has no calibration."""
    reducer_file = read_reducer_file(folder)
    if reducer_file is None or reducer_file.calibration is None:
        return ""
    found = reducer_file.calibration
    questions = f"{found['questions']} questions"
    if found["one_question_per_image"]:
        questions += ", one of each image,"
    sets = ", ".join(f"`{each['path']}` (digest {each['digest']})" for each in found["sets"])
    intro = (
        f"Served at budget **{found['budget']}**: with confidence {found['confidence']:g} fewer than "
        f"{_points(found['bound'])} of 100 answers are lost against full tokens, and {_points(found['max_loss'])} were "
        f"allowed. Measured on {questions} of {sets}, {found['metric']}; exact paired tests from the largest budget to "
        "the smallest, until one fails. It holds for questions like these, with these weights."
    )
    return "\n\n".join([TITLE, intro, _curve(found), *_kinds(found)])


def _curve(found: Mapping[str, Any]) -> str:
    rows = []
    for test in found["tests"]:
        outcome = "passed" if test["passed"] else "failed" if test["tested"] else "not tested"
        full = 100 * test["full_correct"] / test["questions"]
        reduced = full - 100 * test["loss"]
        loss = _signed(test["loss"])
        rows.append([test["budget"], f"{full:.1f}", f"{reduced:.1f}", loss, _points(test["bound"]), outcome])
    header = ["budget", "full tokens, %", "reduced, %", "points lost", "with confidence below", "test"]
    return markdown_table(header, rows)


def _kinds(found: Mapping[str, Any]) -> list[str]:
    if not found["kinds"]:
        return []
    budgets = [test["budget"] for test in found["tests"]]
    rows = [
        [
            kind["kind"],
            str(kind["questions"]),
            f"{100 * kind['full_correct'] / kind['questions']:.1f}",
            *map(_signed, kind["loss"]),
            kind["smallest"],
        ]
        for kind in found["kinds"]
    ]
    header = ["kind", "questions", "full tokens, %", *(f"lost at {budget}" for budget in budgets), "smallest budget"]
    note = (
        "Points lost by kind of question, and the smallest budget at which, as at all larger ones, no more than the "
        "allowed points are lost on these questions (too few of one kind for a guarantee):"
    )
    return [note, markdown_table(header, rows)]


def _points(share: float) -> str:
    return f"{100 * share:.3g}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def update_card(folder: Path) -> None:
    """Puts the section of the folder's reducer.json into the card of an export, in place of an earlier one."""
    card = folder / "README.md"
    section = calibration_section(folder)
    if not card.is_file() or not section:
        return
    text = re.sub(rf"\n{TITLE}\n.*?(?=\n## |\Z)", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    before, versions, after = text.partition(_BEFORE)
    atomic_write(card, f"{before.rstrip()}\n\n{section}\n{versions}{after}")
