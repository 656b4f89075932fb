"""The attention row that methods use is the model's own: every kernel, softcap, cached keys, sliding windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import FastV, View, attach
from dart_train.hooks.observers import attention_row
from tests.laws.cases import batch_of, model_of
from tests.zoo import FAMILIES


@dataclass(frozen=True, kw_only=True)
class RecordingFastV(FastV):
    """Keeps the rows [R, L] that it was given."""

    rows = []  # noqa: RUF012  (of the class: a reducer is frozen)

    def score(self, context: View) -> Tensor:
        self.rows.append((context.score("attention"), context.groups))
        return super().score(context)


def observed(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
    RecordingFastV.rows.clear()
    with torch.no_grad(), attach(model, RecordingFastV(keep=8, layer=2)):
        model(**batch)
    ((row, groups),) = RecordingFastV.rows
    return row, groups


def assert_row_is_the_models(row: Tensor, groups: Any, attentions: Tensor) -> None:
    """attentions [B, H, L, L] of the layer before the selection."""
    wanted = attentions.float().mean(1)[groups.rows, groups.last]
    torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_attention_row_is_the_models_own(name: str) -> None:
    model, batch = model_of(name, "eager"), batch_of(name, (1, 2), "right")
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions[1]
    assert_row_is_the_models(*observed(model, batch), attentions)


@pytest.mark.parametrize("window", [8, 24])
def test_attention_row_of_a_sliding_window_ends_at_the_window(window: int) -> None:
    """Layer 1 of the tiny Gemma 3 slides. The window is shorter than the prompt, in training as in a prefill."""
    model, batch = FAMILIES["gemma3"].model("eager"), batch_of("gemma3", (1,), "right")
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            if getattr(owner, "sliding_window", None) is not None:
                owner.sliding_window = window
    with torch.no_grad():
        attentions = model(**batch, output_attentions=True).attentions[1]
    row, groups = observed(model, batch)
    assert int((row[0] > 0).sum()) <= window < int(groups.last[0])
    assert_row_is_the_models(row, groups, attentions)


@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_row_equals_the_plain_formula(window: int | None, softcap: float | None, past: int) -> None:
    chance = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 9, 8, generator=chance), torch.randn(2, 2, 9 + past, 8, generator=chance)
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, :3] = False
    rows, last = (0, 0, 1), torch.tensor([4, 8, 7])
    found = attention_row(query, key, rows, last, real[list(rows)], 0.25, softcap, window)
    for group, (row, place) in enumerate(zip(rows, last.tolist(), strict=True)):
        heads = []
        for head in range(4):
            scores = 0.25 * key[row, head // 2] @ query[row, head, place]
            scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
            for other in range(9 + past):
                at = other - past
                hidden = at > place or (at >= 0 and not real[row, at]) or (window is not None and place - at >= window)
                scores[other] = -torch.inf if hidden else scores[other]
            heads.append(scores.softmax(0)[past:])
        torch.testing.assert_close(found[group], torch.stack(heads).mean(0), rtol=1e-4, atol=1e-6)
