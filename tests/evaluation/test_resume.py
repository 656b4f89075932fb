"""A comparison that was killed goes on where it was, and never mixes settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation import comparison as verb
from dart_train.evaluation import generate as answers
from dart_train.evaluation.comparison import compare
from tests.evaluation.scene import NUMBER, lines

Goes = Callable[..., list[str]]


@pytest.fixture
def goes_on(done: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> Goes:
    """Runs the comparison again over what lies there; tells what it asked the model."""
    asked: list[str] = []
    real = answers._answered

    def counted(subject, cell_asked, cell, mark, questions, most):
        asked.extend(f"{cell.method} {cell.budget} {question.id}" for question in questions)
        return real(subject, cell_asked, cell, mark, questions, most)

    monkeypatch.setattr(answers, "_answered", counted)
    monkeypatch.setattr(verb, "write", lambda results: None)

    def go(*overrides: str) -> list[str]:
        asked.clear()
        compare(load_recipe(done / "compare.yaml", [f"compare.output_dir={again}", *overrides]))
        return list(asked)

    return go


def test_what_is_answered_is_not_asked_again(again: Path, goes_on: Goes) -> None:
    before = (again / "results.jsonl").read_text()
    assert goes_on() == []
    assert (again / "results.jsonl").read_text() == before


def test_after_a_torn_line_only_what_is_missing_is_asked(again: Path, goes_on: Goes) -> None:
    file = again / "results.jsonl"
    before = file.read_text().splitlines(keepends=True)
    file.write_text("".join(before[:20]) + before[20][:57])  # killed in the middle of a line
    assert len(goes_on()) == len(before) - 20
    assert file.read_text().splitlines(keepends=True) == before


def test_the_parts_of_ranks_that_were_killed_are_found(again: Path, goes_on: Goes) -> None:
    file = again / "results.jsonl"
    before = file.read_text().splitlines(keepends=True)
    file.write_text("".join(before[::2]))
    (again / "results.rank1.jsonl").write_text("".join(before[1::2]))
    assert goes_on() == [] and file.read_text() == "".join(before)
    assert not (again / "results.rank1.jsonl").exists()


def test_other_settings_are_asked_anew_and_the_old_answers_come_back(again: Path, goes_on: Goes) -> None:
    before = (again / "results.jsonl").read_text()
    assert len(goes_on("compare.max_new_tokens=2")) == 5 * NUMBER
    assert not set(before.splitlines()) & set((again / "results.jsonl").read_text().splitlines())
    assert goes_on() == []
    assert (again / "results.jsonl").read_text() == before


def test_another_reduction_is_asked_and_full_tokens_are_not_again(goes_on: Goes) -> None:
    asked = goes_on("reduction={method: dart, keep: 9, layer: 1}", "compare.methods=[dart]")
    assert len(asked) == 2 * NUMBER and not any(each.startswith("full") for each in asked)


def test_more_questions_ask_only_the_new_ones(again: Path, goes_on: Goes) -> None:
    assert goes_on("compare.sets.0.limit=10") == []
    assert len(lines(again)) == 5 * 10
    assert goes_on() == [] and len(lines(again)) == 5 * NUMBER


def test_batches_of_one_say_the_same(again: Path, goes_on: Goes) -> None:
    before = lines(again)
    (again / "results.jsonl").unlink()
    assert len(goes_on("compare.batch_size=1")) == 5 * NUMBER
    assert lines(again) == before
