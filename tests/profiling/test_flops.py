"""FLOPs of a decoder computed from one layer of each kind, against those counted in the decoder itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dart_train.profiling.flops import flop_rates, layer_kinds
from tests.zoo import FAMILIES, HYBRIDS


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
def test_layers_of_two_kinds_cost_their_mean(name: str) -> None:
    model = (FAMILIES | HYBRIDS)[name].model("eager")
    rates = flop_rates(model, dict.fromkeys(("vision", "projector", "language"), "frozen"), False, 1.0)
    for length in (64, 192):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model.get_decoder()(inputs_embeds=torch.randn(1, length, 64), use_cache=False)
        assert 5 * float(rates.forward(1, length)) == pytest.approx(counter.get_total_flops())


def test_kinds_of_layers() -> None:
    """A layer of each kind and its share; layers that only differ in their window are of one kind."""
    assert layer_kinds(HYBRIDS["qwen3_5"].model().config) == [(1, 0.4), (0, 0.6)]
    assert layer_kinds(FAMILIES["gemma3"].model().config) == [(0, 1.0)]
