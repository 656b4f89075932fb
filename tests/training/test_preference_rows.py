"""Rows of pairs and of prompts: every format gives the same messages, images and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train import rewards
from dart_train.config import load_recipe
from dart_train.data.issues import BadRowError
from dart_train.data.sample import ImageRef
from dart_train.models.processors import load_processor
from dart_train.training.preference.rows import open_rows, read_row
from tests.training.preference_scene import make_preference_recipe

QUESTION, GOOD, BAD = "What is it?", "A red cup.", "A cat."
USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
FORMATS: dict[str, dict[str, Any]] = {
    "trl, messages": {"prompt": [USER], "chosen": [{"role": "assistant", "content": GOOD}],
                      "rejected": [{"role": "assistant", "content": [{"type": "text", "text": BAD}]}],
                      "images": ["a.png"]},
    "trl, text": {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "image": "a.png"},
    "trl, implicit prompt": {"chosen": [USER, {"role": "assistant", "content": GOOD}],
                             "rejected": [USER, {"role": "assistant", "content": BAD}], "images": ["a.png"]},
    "sharegpt": {"conversations": [{"from": "human", "value": f"<image>{QUESTION}"}], "images": ["a.png"],
                 "chosen": {"from": "gpt", "value": GOOD}, "rejected": {"from": "gpt", "value": BAD}},
    "rlhf-v": {"question": QUESTION, "chosen": GOOD, "rejected": BAD, "image": "a.png"},
    "json text": {"text": json.dumps({"query": QUESTION, "chosen": GOOD, "rejected": BAD, "images": ["a.png"]})},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_pairs_is_read_alike(name: str) -> None:
    row = read_row(FORMATS[name], pairs=True)
    assert row.messages() == [USER]
    assert (row.chosen, row.rejected, row.images) == (GOOD, BAD, [ImageRef(path="a.png")])


@pytest.mark.parametrize("name", FORMATS)
def test_prompts_for_rollouts_are_read_from_pairs_too(name: str) -> None:
    if "implicit" in name:
        return
    row = read_row({**FORMATS[name], "solution": "cup"} if "json" not in name else FORMATS[name], pairs=False)
    assert row.messages() == [USER] and row.chosen is None
    assert row.columns == ({} if "json" in name else {"solution": "cup"})


def test_answers_of_a_conversation_are_not_in_the_prompt_of_a_rollout() -> None:
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": GOOD}]
    row = read_row({"conversations": turns}, pairs=False)
    assert [turn["role"] for turn in row.messages()] == ["user"] and row.columns == {"answer": GOOD}


def test_rewards_compare_with_the_reference_answers() -> None:
    completions = [[{"role": "assistant", "content": "a red cup"}], "A cat.", [{"role": "assistant", "content": BAD}]]
    references = [GOOD, [GOOD, BAD], GOOD]
    assert rewards.exact_match(completions, answer=references) == [1.0, 1.0, 0.0]
    assert rewards.contains(["It is a red cup, I think"], solution=["red cup"]) == [1.0]
    assert 0 < rewards.anls(["a red cap"], answer=[GOOD])[0] < 1
    with pytest.raises(ValueError, match="solution or answer"):
        rewards.exact_match(completions)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"chosen": GOOD, "rejected": BAD}, "unknown_format"),
        ({"prompt": QUESTION, "chosen": GOOD}, "empty_turn"),
        ({"prompt": QUESTION, "chosen": GOOD, "rejected": GOOD}, "nothing_supervised"),
        ({"prompt": f"<image>{QUESTION}", "chosen": GOOD, "rejected": BAD}, "mark_mismatch"),
        ({"prompt": 5, "chosen": GOOD, "rejected": BAD}, "bad_type"),
        ({"text": "{"}, "bad_json"),
    ],
)
def test_bad_row_is_refused_by_name(row: dict[str, Any], code: str) -> None:
    with pytest.raises(BadRowError) as caught:
        read_row(row, pairs=True)
    assert caught.value.code == code


def test_bad_rows_are_left_out_or_refused(tmp_path: Path) -> None:
    recipe = load_recipe(make_preference_recipe(tmp_path, "dpo"))
    file = tmp_path / "pairs.json"
    rows = json.loads(file.read_text())
    file.write_text(json.dumps([*rows, {"chosen": "x"}]))
    processor = load_processor(recipe.model.path)
    with pytest.raises(ValueError, match="1 of 13 rows cannot be used"):
        open_rows(recipe.data.train, recipe.data, processor, pairs=True)
    tolerant = recipe.data.model_copy(update={"max_bad_fraction": 0.1})
    found = open_rows(recipe.data.train, tolerant, processor, pairs=True)
    assert len(found.dataset) == 12 and len(found.skipped) == 1 and "pairs.json:12" in found.skipped[0]
    row = found.dataset[0]
    assert row["images"][0].mode == "RGB" and row["chosen"][0]["role"] == "assistant"
