"""What a decoder layer is given: tensors that nothing here can shorten are refused, and masks are left out only where
one new token sees the entire cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dart_train.hooks.forward_state import ForwardState
from dart_train.hooks.layer_inputs import gather_kwargs
from dart_train.hooks.layer_masks import LayerMasks
from dart_train.models.structure import find_parts
from tests.laws.cases import model_of

LENGTH = 10


def state_of(keeps_all: bool) -> ForwardState:
    """The state of a forward over LENGTH tokens, as far as `gather_kwargs` reads it."""
    kept = SimpleNamespace(source_length=LENGTH, keeps_all=keeps_all, gather=lambda x: x[:, :4])
    made: Any = SimpleNamespace(stages=[SimpleNamespace(kept=kept)], kept_positions=lambda stage: kept)
    made.compact_places = None
    return cast(ForwardState, made)


@pytest.mark.parametrize("shape", [(1, LENGTH), (1, LENGTH, 8), (1, 4, LENGTH)])
def test_unknown_tensor_of_full_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NotImplementedError, match="is given extra of full length 10"):
        gather_kwargs(state_of(keeps_all=False), 0, {"extra": torch.zeros(shape)}, False)


def test_tensor_of_another_length_and_keep_all_are_not_refused() -> None:
    extra = torch.zeros(1, LENGTH)
    for keeps_all, given in ((True, extra), (False, extra[:, 1:]), (False, extra[0])):
        kwargs: dict[str, Any] = {"extra": given}
        gather_kwargs(state_of(keeps_all), 0, kwargs, False)
        assert kwargs["extra"] is given


@pytest.mark.parametrize(("rows", "new"), [(1, 1), (2, 1), (1, 2)])
def test_only_one_new_token_of_one_row_is_decoded_without_a_mask(rows: int, new: int) -> None:
    masks = LayerMasks(find_parts(model_of("llava")))
    hidden = torch.zeros(rows, new, 8)
    assert masks.keep_as_given(0, hidden, {}) == ((rows, new) == (1, 1))
    assert not masks.keep_as_given(0, hidden, {"attention_mask": torch.ones(rows, 1, new, LENGTH)})


def test_indexer_that_selects_keys_gets_a_mask_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = find_parts(model_of("llava"))
    monkeypatch.setattr(parts.text_config, "index_topk", 2048, raising=False)
    assert not LayerMasks(parts).keep_as_given(0, torch.zeros(1, 1, 8), {})
