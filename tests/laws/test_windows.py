"""Sliding windows count positions of the full sequence, dropped tokens included, in training and while decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, KeepAll, attach
from dart_train.hooks.transformers_compat import cache_argument, cache_in_output
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import KERNELS, ROUNDING, batch_of, model_of, new_tokens
from tests.zoo import FAMILIES, conversation, encode

WINDOWS = (4, 12, 30)  # shorter than the question, than the kept tokens, than an image
TOKEN_TYPES = ("token_type_ids",)


def model_with_window(name: str, window: int, attn: str = "sdpa") -> Any:
    """Gemma 3 slides in three of five layers; LLaVA-NeXT's Mistral in all of them."""
    model = FAMILIES[name].model(attn)
    for module in model.modules():
        for owner in (module, getattr(module, "config", None)):
            if hasattr(owner, "sliding_window"):
                owner.sliding_window = window
    return model


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", ["gemma3", "llava_next"])
def test_decoding_past_the_window_is_the_masked_forward(name: str, attn: str, window: int, layer: int) -> None:
    model, batch = model_with_window(name, window, attn), batch_of(name, (1, 2))
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 6, "min_new_tokens": 6}
    with attach(model, DART(keep=8, layer=layer)) as attached:
        output = model.generate(**batch, do_sample=False, suppress_tokens=[model.config.image_token_id], **options)
        keep = attached.last.mask
    new = output.sequences[:, batch["input_ids"].shape[1] :]
    longer = {**batch, "input_ids": output.sequences, "attention_mask": with_ones(batch["attention_mask"], new)}
    longer |= {k: torch.cat([batch[k], new * 0], 1) for k in TOKEN_TYPES if k in batch}
    with torch.no_grad():
        truth = masked_logits(model, longer, [(layer, with_ones(keep, new))])
    for step, logits in enumerate(output.logits):
        wanted = truth[:, batch["input_ids"].shape[1] - 1 + step]
        assert float((logits - wanted).abs().max() / wanted.abs().max()) < 10 * ROUNDING
    wide = masked_logits(model_of(name, attn), longer, [(layer, with_ones(keep, new))])
    assert first_difference(wide, truth, with_ones(keep, new)) > 1e-3  # the window does something here


def with_ones(mask: Tensor, new: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones_like(new, dtype=mask.dtype)], 1)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["gemma3", "llava_next"])
def test_cached_generation_past_the_window_is_recomputation(name: str, beams: int) -> None:
    model, batch = model_with_window(name, 12), batch_of(name)
    for reducer in ([DART(keep=8, layer=1), FastV(keep=4, layer=3)], DART(keep=8, layer=2)):
        with attach(model, reducer):
            cached = new_tokens(model, batch, num_beams=beams)
            assert torch.equal(cached, new_tokens(model, batch, num_beams=beams, use_cache=False))
    plain = new_tokens(model, batch, num_beams=beams)
    with attach(model, KeepAll()):
        assert torch.equal(new_tokens(model, batch, num_beams=beams), plain)


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_later_turn_past_the_window(window: int, attn: str) -> None:
    """An image, an answer, and another image; then words alone: all on one cache."""
    model = model_with_window("llava_next", window, attn)
    first, _ = conversation(1, "what is here", "a red one", seed=1)
    second, _ = conversation(1, "and which is here", seed=2)
    both = encode("llava_next", [first + second])
    ids, mask = both["input_ids"], both["attention_mask"]
    edges = torch.diff((ids[0] == model.config.image_token_id).int()).nonzero().flatten().tolist()
    split = edges[2] - 2
    images = {k: both[k] for k in ("pixel_values", "image_sizes")}
    name, words = cache_argument(model.forward), ids[:, -5:]
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        now = {k: v[:1] for k, v in images.items()}
        output = model(input_ids=ids[:, :split], attention_mask=mask[:, :split], use_cache=True, **now)
        before, later = attached.last, {k: v[1:] for k, v in images.items()}
        output = model(input_ids=ids[:, split:], attention_mask=mask, **later, **{name: cache_in_output(output)})
        after, second_logits = attached.last, output.logits
        whole = with_ones(mask, words)
        third_logits = model(input_ids=words, attention_mask=whole, **{name: cache_in_output(output)}).logits
    keep = with_ones(torch.cat([before.mask, after.mask], 1), words)
    longer = {**both, "input_ids": torch.cat([ids, words], 1), "attention_mask": whole}
    with torch.no_grad():
        truth = masked_logits(model, longer, [(2, keep)])
    assert first_difference(second_logits, truth[:, split:-5], after.mask) < 10 * ROUNDING
    assert first_difference(third_logits, truth[:, -5:], torch.ones_like(words, dtype=torch.bool)) < 10 * ROUNDING
