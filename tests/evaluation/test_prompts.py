"""Batches of questions equal those of the family's own processor and chat template, padded on the left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dart_train.data.images import ImageStore
from dart_train.data.sample import ImageRef, Turn
from dart_train.evaluation.prompts import QuestionEncoder
from dart_train.evaluation.questions import Question
from tests.zoo import FAMILIES, conversation, encode

IMAGES, WORDS = (1, 2), ("What is this?", "Which of them is larger?")


def questions(folder: Path) -> tuple[list[Question], list[list[dict]]]:
    found, rows = [], []
    for number, (count, words) in enumerate(zip(IMAGES, WORDS, strict=True)):
        messages, images = conversation(count, words, seed=number)
        names = [f"{number}-{i}.png" for i in range(count)]
        for name, image in zip(names, images, strict=True):
            image.save(folder / name)
        turn = Turn("user", (*(ImageRef(path=name) for name in names), words))
        found.append(Question("set", str(number), "", (turn,), ("yes",), "key", ImageStore(folder)))
        rows.append(messages)
    return found, rows


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_equals_that_of_the_processor(family: str, tmp_path: Path) -> None:
    given, rows = questions(tmp_path)
    batch = QuestionEncoder(FAMILIES[family].processor()).batch(given)
    expected = encode(family, rows)
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(batch[name], expected[name]), name
    assert batch.keys() == expected.keys()
    assert not batch["attention_mask"][:, 0].all(), "rows of different length"


def test_visual_tokens_are_counted_by_row(tmp_path: Path) -> None:
    prompts = QuestionEncoder(FAMILIES["llava"].processor())
    ids = prompts.batch(questions(tmp_path)[0])["input_ids"]
    assert prompts.visual_tokens(ids) == [64, 128]


def test_features_are_cached_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, _ = questions(tmp_path)
    prompts = QuestionEncoder(FAMILIES["llava"].processor())
    prompts._free_bytes = sum(
        tensor.nbytes for tensor in QuestionEncoder(prompts.processor).features(given[1]).values()
    )
    first = prompts.batch(given[::-1])
    opened: list[str] = []
    read = Question.media

    def recorded(question: Question, processor: Any = None) -> list[Any]:
        opened.append(question.id)
        return read(question, processor)

    monkeypatch.setattr(Question, "media", recorded)
    again = prompts.batch(given[::-1])
    assert opened == ["0"], "only the first question fits into the cache"
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_control_token_in_a_question_is_an_error(tmp_path: Path) -> None:
    turn = Turn("user", ("What does <image> mean?",))
    bad = Question("set", "7", "", (turn,), ("yes",), "key", ImageStore(tmp_path))
    with pytest.raises(ValueError, match="set, question 7: its text contains the control token '<image>'"):
        QuestionEncoder(FAMILIES["llava"].processor()).features(bad)


def test_processor_without_chat_template_is_an_error(tmp_path: Path) -> None:
    import copy

    bare = copy.copy(FAMILIES["llava"].processor())
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        QuestionEncoder(bare)
