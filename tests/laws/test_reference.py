"""The kept set in a real model is that of the paper's algorithm in plain loops, given only what the plain model shows:
the input of layer K, the keys in the cache of layer K-1, the final norm's weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, attach
from dart_train.hooks.transformers_compat import cache_in_output
from tests.fixtures.reference_selection import dart, l1_norms
from tests.laws.cases import KERNELS, NAMES, model_of
from tests.zoo import FAMILIES, conversation, encode

QUESTIONS = ((1, "what is it"), (2, "how many red ones are left of the circle"))  # images and the question


def rows_of(name: str) -> list[Any]:
    return [conversation(images, question, seed=images)[0] for images, question in QUESTIONS]


def shown_by_the_plain_model(model: Any, batch: dict[str, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """One sample: the input of `layer` [L, D], and the keys [H, L, d] in the cache of the layer before it."""
    inputs: list[Tensor] = []
    hook = model.get_decoder().layers[layer].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        with torch.no_grad():
            cache = cache_in_output(model(**batch, use_cache=True))
    finally:
        hook.remove()
    return inputs[0][0], cache.layers[layer - 1].keys[0]


def kept_by_the_reference(name: str, model: Any, batch: dict[str, Tensor], reducer: DART) -> list[int]:
    """Places from the sample's end: padding on the left does not move them."""
    states, keys = shown_by_the_plain_model(model, batch, reducer.layer)
    ids, norm = batch["input_ids"][0], model.get_decoder().norm.weight.detach().float()
    image = (ids == model.config.image_token_id).nonzero().flatten().tolist()
    text = list(range(image[-1] + 1, len(ids)))
    weight = 1 + norm if name == "gemma3" else norm
    kept = dart(states, l1_norms(keys), image, text, int(reducer.keep), weight=weight, rule=reducer.rule)
    return sorted(place - len(ids) for place in kept)


@pytest.mark.parametrize("rule", ["exact", "paper"])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_dart_keeps_what_the_paper_keeps(name: str, attn: str, rule: Any) -> None:
    model, rows = model_of(name, attn), rows_of(name)
    together = encode(name, rows, padding_side="left")
    for layer in (2,) if attn == "eager" or rule == "paper" else (1, 2, 3):
        reducer = DART(keep=13, layer=layer, rule=rule)
        with torch.no_grad(), attach(model, reducer) as attached:
            model(**together)
        assert attached.last is not None
        mask = attached.last.kept_visual
        found = [(row.nonzero().flatten() - mask.shape[1]).tolist() for row in mask]
        assert found == [kept_by_the_reference(name, model, encode(name, [row]), reducer) for row in rows]
        assert [len(places) for places in found] == [13 if rule == "exact" else 4 + 8 * (13 // 8)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_generation_uses_the_same_selection(name: str) -> None:
    model, rows = FAMILIES[name].model(), rows_of(name)
    reducer = DART(keep=13)
    wanted = [kept_by_the_reference(name, model, encode(name, [row]), reducer) for row in rows]
    together = encode(name, rows, padding_side="left")
    with attach(model, reducer) as attached:
        model.generate(**together, max_new_tokens=2, do_sample=False)
    assert attached.last is not None
    mask = attached.last.kept_visual
    assert [(row.nonzero().flatten() - mask.shape[1]).tolist() for row in mask] == wanted
