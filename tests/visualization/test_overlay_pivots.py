"""The drawn pivots are those that the forward chose, at positions of the full sequence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dart_train.hooks import Kept, attach
from dart_train.reduction import DART, FastV, Reducer
from dart_train.visualization import choice_of_row
from tests.zoo import FAMILIES, make_batch


@torch.no_grad()
def kept(batch: dict[str, Tensor], *reducers: Reducer) -> Kept:
    model = FAMILIES["llava"].model()
    with attach(model, list(reducers)) as attached:
        model(**batch)
        assert attached.last is not None
        return attached.last


def pivots(found: Kept) -> Tensor:
    assert found.pivots is not None
    return found.pivots


@pytest.mark.parametrize("side", ["left", "right"])
def test_image_pivots_equal_the_kept_tokens_of_a_budget_of_pivots(side: str) -> None:
    batch = make_batch("llava", (1, 2), padding_side=side)
    found = kept(batch, DART(keep=20))
    alone = kept(batch, DART(keep=4, text_pivots=0))
    assert (pivots(found) & found.visual).equal(alone.kept_visual)
    assert (pivots(found) & found.visual).sum(1).tolist() == [4, 4]


def test_text_pivots_are_text_after_the_image() -> None:
    batch = make_batch("llava", (1, 2))
    found = kept(batch, DART(keep=20, text_pivots=3))
    text = pivots(found) & ~found.visual
    assert text.sum(1).tolist() == [3, 3]
    assert not (text & ~batch["attention_mask"].bool()).any()
    for row in range(2):
        assert int(text[row].nonzero()[0]) > int(found.visual[row].nonzero()[-1])


def test_pivots_of_a_later_stage_have_positions_of_the_full_sequence() -> None:
    batch = make_batch("llava", (1, 2))
    found = kept(batch, DART(keep=40, layer=2), DART(keep=16, layer=3, text_pivots=2))
    assert (pivots(found) & found.visual).sum(1).tolist() == [4, 4]
    assert not (pivots(found) & ~found.mask).any()
    assert ((pivots(found) & ~found.visual).sum(1)).tolist() == [2, 2]


def test_method_without_pivots() -> None:
    found = kept(make_batch("llava", (1,)), FastV(keep=9))
    assert found.pivots is None
    assert choice_of_row(found).pivots is None and choice_of_row(found).number == 9


def test_pivot_words_are_those_of_the_question() -> None:
    batch, tokenizer = make_batch("llava", (1,)), FAMILIES["llava"].processor().tokenizer
    found = kept(batch, DART(keep=9))
    choice = choice_of_row(found, 0, batch["input_ids"][0], tokenizer)
    assert len(choice.words) == 4 and choice.number == 9 and len(choice.kept) == 64
    text = tokenizer.decode(batch["input_ids"][0])
    assert all(word == "␣" or word in text for word in choice.words)
    assert choice.pivots is not None
    assert all(keep for keep, pivot in zip(choice.kept, choice.pivots, strict=True) if pivot)
