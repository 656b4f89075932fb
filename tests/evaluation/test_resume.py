"""A comparison that was killed resumes where it stopped, and never mixes answers of different settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation import comparison, generate
from dart_train.evaluation.comparison import compare
from tests.evaluation.scene import NUMBER, lines

Resume = Callable[..., list[str]]


@pytest.fixture
def resume(done: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> Resume:
    """Runs the comparison again on the copied folder; returns the questions that the model was given."""
    answered: list[str] = []
    real = generate.answer_batch

    def counted(checkpoint, context, work, questions, max_new_tokens):
        answered.extend(f"{work.cell.method} {work.cell.budget} {question.id}" for question in questions)
        return real(checkpoint, context, work, questions, max_new_tokens)

    monkeypatch.setattr(generate, "answer_batch", counted)
    monkeypatch.setattr(comparison, "write", lambda results: None)

    def run(*overrides: str) -> list[str]:
        answered.clear()
        compare(load_recipe(done / "compare.yaml", [f"compare.output_dir={again}", *overrides]))
        return list(answered)

    return run


def test_resume_of_a_finished_comparison_answers_nothing(again: Path, resume: Resume) -> None:
    before = (again / "results.jsonl").read_text()
    assert resume() == []
    assert (again / "results.jsonl").read_text() == before


def test_resume_after_a_torn_line(again: Path, resume: Resume) -> None:
    file = again / "results.jsonl"
    before = file.read_text().splitlines(keepends=True)
    file.write_text("".join(before[:20]) + before[20][:57])  # killed in the middle of a line
    assert len(resume()) == len(before) - 20
    assert file.read_text().splitlines(keepends=True) == before


def test_resume_finds_the_files_of_killed_ranks(again: Path, resume: Resume) -> None:
    file = again / "results.jsonl"
    before = file.read_text().splitlines(keepends=True)
    file.write_text("".join(before[::2]))
    (again / "results.rank1.jsonl").write_text("".join(before[1::2]))
    assert resume() == [] and file.read_text() == "".join(before)
    assert not (again / "results.rank1.jsonl").exists()


def test_answers_of_other_settings_are_kept_and_reused(again: Path, resume: Resume) -> None:
    before = (again / "results.jsonl").read_text()
    assert len(resume("compare.max_new_tokens=2")) == 5 * NUMBER
    assert not set(before.splitlines()) & set((again / "results.jsonl").read_text().splitlines())
    assert resume() == []
    assert (again / "results.jsonl").read_text() == before


def test_another_reduction_reuses_full_tokens(resume: Resume) -> None:
    answered = resume("reduction={method: dart, keep: 9, layer: 1}", "compare.methods=[dart]")
    assert len(answered) == 2 * NUMBER and not any(each.startswith("full") for each in answered)


def test_resume_with_another_limit(again: Path, resume: Resume) -> None:
    assert resume("compare.sets.0.limit=10") == []
    assert len(lines(again)) == 5 * 10
    assert resume() == [] and len(lines(again)) == 5 * NUMBER


def test_batch_size_changes_no_answer(again: Path, resume: Resume) -> None:
    before = lines(again)
    (again / "results.jsonl").unlink()
    assert len(resume("compare.batch_size=1")) == 5 * NUMBER
    assert lines(again) == before
