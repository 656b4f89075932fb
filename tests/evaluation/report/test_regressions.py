"""Regressions: correct with full tokens, wrong reduced; questions lost by most rows come first."""

from __future__ import annotations

from typing import Any

from dart_train.evaluation.report.regressions import regressions

RIGHT, WRONG = "red", "a dog"


def lines(name: str, full: str, *reduced: str, kind: str = "", checkpoint: str = "base") -> list[dict[str, Any]]:
    """One question: the answer of full tokens, and of reductions that keep 40, 30, 20, ... tokens."""
    rows = [("full", "full", 64, full), *(("dart", str(40 - 10 * i), 40 - 10 * i, r) for i, r in enumerate(reduced))]
    return [
        {"checkpoint": checkpoint, "method": method, "budget": budget, "set": "s", "id": name, "kind": kind,
         "kept": kept, "prediction": answer, "answers": [RIGHT]}
        for method, budget, kept, answer in rows
    ]  # fmt: skip


def found(*questions: list[dict[str, Any]], most: int = 9, metric: str = "exact_match") -> list[str]:
    return [each.full["id"] for each in regressions([line for q in questions for line in q], "base", metric, most)]


def test_only_questions_that_full_tokens_answer_are_regressions() -> None:
    assert found(lines("a", WRONG, WRONG, WRONG), lines("b", RIGHT, RIGHT, RIGHT), lines("c", RIGHT, RIGHT, WRONG),
                 lines("d", RIGHT, WRONG, WRONG, checkpoint="tuned")) == ["c"]  # fmt: skip


def test_most_lost_questions_come_first() -> None:
    questions = [
        lines("a", RIGHT, RIGHT, RIGHT, WRONG),
        lines("b", RIGHT, WRONG, WRONG, WRONG),
        lines("c", RIGHT, WRONG),
    ]
    assert found(*questions) == ["b", "a", "c"] and found(*questions, most=1) == ["b"]
    (worst,) = regressions(questions[1], "base", "exact_match", 1)
    assert [line["kept"] for line in worst.wrong] == [40, 30, 20] and worst.correct == 0


def test_kinds_of_questions_take_turns() -> None:
    questions = [lines(str(i), RIGHT, WRONG, WRONG, kind="colour") for i in range(5)]
    assert found(*questions, lines("x", RIGHT, WRONG, kind="reading"), most=3) == ["0", "x", "1"]


def test_score_of_one_half_counts_as_correct() -> None:
    assert found(lines("a", "rid", "rat", "xyz"), metric="anls") == ["a"]
    assert found(lines("a", "xyz", "rat"), metric="anls") == []
