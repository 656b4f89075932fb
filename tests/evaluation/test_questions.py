"""Questions and correct answers of a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train.config import Recipe, read_recipe
from dart_train.data.issues import BadRowError
from dart_train.evaluation.questions import Question, open_sets, questions_of
from tests.zoo import make_image


@pytest.fixture
def read_rows(tmp_path: Path):
    make_image(1).save(tmp_path / "a.png")

    def read(*rows: Any, **columns: str) -> list[Question | BadRowError]:
        (tmp_path / "rows.json").write_text(json.dumps(list(rows)))
        recipe: Recipe = read_recipe(
            f"model: {{path: x}}\ncompare: {{sets: [{{path: {tmp_path}/rows.json, columns: {json.dumps(columns)}}}]}}"
        )
        return list(questions_of(open_sets(recipe)[0]))

    return read


def test_each_answer_of_a_conversation_is_a_question_with_the_turns_before_it(read_rows) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "742"},
             {"from": "human", "value": "On which colour?"}, {"from": "gpt", "value": "yellow"}]  # fmt: skip
    one, two = read_rows({"id": "p", "image": "a.png", "conversations": turns, "kind": ["number", "holder"]})
    assert (one.id, one.kind, one.text, one.answers) == ("p#1", "number", "What?", ("742",))
    assert (two.id, two.kind, two.text, two.answers) == ("p#2", "holder", "On which colour?", ("yellow",))
    assert len(one.turns) == 1 and len(two.turns) == 3 and len(two.media()) == 1
    assert one.key != two.key


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"answer": "red"}, ("red",)),
        ({"answer": ["red", "dark red"]}, ("red", "dark red")),
        ({"answer": "red", "answers": ["red", "scarlet"]}, ("red", "scarlet")),
        ({"answer": "red", "answers": [{"answer": "red"}, {"answer": "wine"}]}, ("red", "wine")),
        ({"answer": 7}, ("7",)),
    ],
)
def test_all_answers_of_a_row_count_as_correct(read_rows, row, answers) -> None:
    (found,) = read_rows({"image": "a.png", "question": "Which?", **row})
    assert found.answers == answers


def test_kind_and_answers_may_have_other_names(read_rows) -> None:
    row = {"image": "a.png", "question": "Which?", "answer": "red", "category": "colour", "gold": ["red", "rot"]}
    (found,) = read_rows(row, kind="category", answers="gold")
    assert (found.kind, found.answers) == ("colour", ("red", "rot"))


def test_bad_row_is_named(read_rows) -> None:
    good = {"image": "a.png", "question": "Which?", "answer": "red"}
    found = read_rows(good, {"image": "a.png"}, {**good, "answers": [None]})
    assert [type(each) for each in found] == [Question, BadRowError, BadRowError]
    assert "rows.json:1" in str(found[1]) and "answers" in str(found[2])


def test_key_changes_with_question_answer_and_image(read_rows, tmp_path: Path) -> None:
    row = {"image": "a.png", "question": "Which?", "answer": "red"}
    keys = [read_rows({**row, **more})[0].key for more in ({}, {}, {"answer": "blue"}, {"question": "What?"})]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    make_image(2).save(tmp_path / "a.png")
    assert read_rows(row)[0].key not in keys


def test_rows_with_the_same_id_get_distinct_ids(read_rows) -> None:
    row = {"id": "7", "image": "a.png", "question": "Which?", "answer": "red"}
    assert [each.id for each in read_rows(row, row, {**row, "answer": "blue"})] == ["7", "7 (row 1)", "7 (row 2)"]
