"""`FastV(row="own")` selects by the attention of layer K itself, as the model would compute it on the full sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, View, attach
from dart_train.hooks import stage_checks
from dart_train.reduction import Reducer, from_config
from tests.laws.cases import batch_of, model_of
from tests.zoo import FAMILIES

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"]


@dataclass(frozen=True, kw_only=True)
class RecordingOwnRow(FastV):
    """Keeps the rows [R, L] that it was given."""

    seen = []  # noqa: RUF012  (of the class: a reducer is frozen)

    def score(self, context: View) -> Tensor:
        self.seen.append((context.score("attention"), context.groups))
        return super().score(context)


def own(**options: Any) -> RecordingOwnRow:
    RecordingOwnRow.seen.clear()
    return RecordingOwnRow(row="own", **options)


def kept_by(attention: Tensor, batch_mask: Tensor, keep: int) -> Tensor:
    """attention [B, L] of the last prompt token, batch_mask [B, L] visual -> [B, L] the `keep` highest."""
    order = attention.masked_fill(~batch_mask, -1.0).argsort(dim=1, descending=True, stable=True)[:, :keep]
    return torch.zeros_like(batch_mask).scatter(1, order, True)


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_row_is_the_eager_attention_of_layer_k(name: str, layer: int) -> None:
    batch = batch_of(name, (1, 2), "right")
    attentions = model_of(name, "eager")(**batch, output_attentions=True).attentions[layer]
    with attach(model_of(name), own(keep=8, layer=layer)):
        model_of(name)(**batch)
    ((row, groups),) = RecordingOwnRow.seen
    torch.testing.assert_close(row, attentions.float().mean(1)[groups.rows, groups.last], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_highest_of_the_row_are_kept() -> None:
    model, batch = model_of("llava", "eager"), batch_of("llava", (1,))
    attention = model(**batch, output_attentions=True).attentions[2].mean(1)[:, -1]
    with attach(model, FastV(keep=8, row="own")) as attached:
        model(**batch)
        assert attached.last is not None
        assert torch.equal(attached.last.kept_visual, kept_by(attention, attached.last.visual, 8))
    with attach(model, FastV(keep=8)) as previous:
        model(**batch)
        assert previous.last is not None
        assert not torch.equal(previous.last.kept_visual, kept_by(attention, previous.last.visual, 8))


@torch.no_grad()
def test_generation_equals_recomputation_and_the_cache_gets_nothing_twice() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1, 2))
    with attach(model, FastV(keep=8, row="own")):
        cached, uncached = (
            model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=use) for use in (True, False)
        )
        assert torch.equal(cached, uncached)


def test_gradients_survive_checkpointing_and_dropout_draws_stay() -> None:
    """The layer that runs ahead draws no random number and leaves no gradient."""
    model, batch = FAMILIES["llava"].model().train(), batch_of("llava", labels=True)
    weight = model.get_input_embeddings().weight.requires_grad_(True)
    found = []
    with attach(model, FastV(keep=8, row="own")):
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(0)
            (gradient,) = torch.autograd.grad(model(**batch, use_cache=False).loss, weight)
            found += [gradient, torch.rand(1)]
    torch.manual_seed(0)
    assert torch.equal(found[1], torch.rand(1)) and torch.equal(found[3], found[1])
    torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_second_stage_sees_the_sequence_that_the_first_left() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1, 2))
    with attach(model, [DART(layer=1, keep=12), own(layer=3, keep=6)]) as attached:
        model(**batch)
        assert attached.last is not None
        assert attached.last.visual_after == (6, 6)
    ((row, groups),) = RecordingOwnRow.seen
    assert row.shape[1] == groups.length < batch["input_ids"].shape[1]
    torch.testing.assert_close(row.sum(1), torch.ones(len(row)))


def test_old_configurations_mean_the_previous_layer() -> None:
    assert from_config({"method": "fastv", "keep": 8}) == FastV(keep=8, row="previous")
    for method in ("fastv", "reverse_fastv"):
        reducer: Reducer = from_config({"method": method, "keep": 8, "row": "own"})
        assert from_config(reducer.to_dict()) == reducer
    with pytest.raises(ValueError, match="row='later': expected one of previous, own"):
        from_config({"method": "fastv", "row": "later"})


def test_layer_whose_attention_cannot_be_recorded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_checks, "layers_with_rows", lambda parts, start: [])
    with pytest.raises(ValueError, match="use row='previous'"):
        attach(model_of("llava"), FastV(keep=8, row="own"))
