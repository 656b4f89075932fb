"""Gemma 4 E2B and E4B: the last layers use the keys of earlier ones, and each layer has an input of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from dart_train import DART, FastV, KeepAll, ScoreReducer, attach
from dart_train.reduction import SelectionContext
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import IMAGES, KERNELS, ROUNDING
from tests.laws.test_keep_all import gradients
from tests.zoo.features import IMAGE, PAD, feature_batch

WIDTH = 64
WINDOWS = (512, 10)


def new_model(attn: str = "sdpa", window: int = 512) -> Any:
    """Layers 4 and 5 use the keys of layers 2 and 3."""
    kinds = [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "full", "sliding", "full")]
    text = {"vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": len(kinds)}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16}
    text |= {"layer_types": kinds, "num_kv_shared_layers": 2, "sliding_window": window, "initializer_range": 0.1}
    text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
    text |= {"pad_token_id": PAD, "eos_token_id": 1, "bos_token_id": 2}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower |= {"num_key_value_heads": 2, "head_dim": 16}
    ids = {"image_token_id": IMAGE, "video_token_id": 11, "audio_token_id": 12, "boi_token_id": 13, "eoi_token_id": 14}
    config = hf.Gemma4Config(text_config=text, vision_config=tower, audio_config=None, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.Gemma4ForConditionalGeneration._from_config(config, attn_implementation=attn)
        with torch.no_grad():
            for name, weight in model.get_decoder().named_parameters():
                if "norm" in name and weight.ndim == 1:
                    weight.add_(0.3 * torch.randn_like(weight))
    return model.eval()


model_of = cache(new_model)


def batch_of(images: tuple[int, ...] = (1, 2, 0), side: str = "left", labels: bool = False) -> dict[str, Any]:
    return feature_batch(WIDTH, images, side, labels)


def given(batch: dict[str, Any]) -> dict[str, Any]:
    """The model fills in what the encoder's output lacks: a copy for each forward."""
    return {**batch, "mm_encoder_outputs": copy.copy(batch["mm_encoder_outputs"])}


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("attn", KERNELS)
def test_reduced_forward_is_the_masked_one(attn: str, images: tuple[int, ...], side: str, layer: int) -> None:
    batch = batch_of(images, side)
    for window in WINDOWS:
        model = model_of(attn, window)
        with torch.no_grad(), attach(model, DART(keep=5, layer=layer)) as attached:
            logits, kept = model(**given(batch)).logits, attached.last
        assert kept.visual_after == tuple(min(5, n) for n in kept.visual_before)
        with torch.no_grad():
            truth = masked_logits(model, given(batch), [(layer, kept.mask)])
        assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("side", ["left", "right"])
def test_keep_all_is_the_plain_model(side: str) -> None:
    model, batch = model_of(), batch_of(side=side, labels=True)
    with torch.no_grad():
        plain = model(**given(batch))
        with attach(model, KeepAll()):
            kept = model(**given(batch))
    assert first_difference(kept.logits, plain.logits, batch["attention_mask"].bool()) < ROUNDING
    torch.testing.assert_close(kept.loss, plain.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("images", [(1,), (1, 2)])
@pytest.mark.parametrize("attn", KERNELS)
def test_each_step_is_the_masked_forward(attn: str, images: tuple[int, ...], layer: int, window: int) -> None:
    """`generate` wants one logit of the prompt: layers with shared keys then run on its last state alone."""
    model, batch = model_of(attn, window), batch_of(images)
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 5, "min_new_tokens": 5}
    with attach(model, DART(keep=5, layer=layer)) as attached:
        output = model.generate(**given(batch), do_sample=False, suppress_tokens=[IMAGE, 11, 12], **options)
        keep = attached.last.mask
    new = output.sequences[:, batch["input_ids"].shape[1] :]
    longer = {**batch, "input_ids": output.sequences, "attention_mask": with_ones(batch["attention_mask"], new)}
    with torch.no_grad():
        truth = masked_logits(model, given(longer), [(layer, with_ones(keep, new))])
    for step, logits in enumerate(output.logits):
        wanted = truth[:, batch["input_ids"].shape[1] - 1 + step]
        assert float((logits - wanted).abs().max() / wanted.abs().max()) < 10 * ROUNDING


def with_ones(mask: Tensor, new: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones_like(new, dtype=mask.dtype)], 1)


@dataclass(frozen=True, kw_only=True)
class EveryThird(ScoreReducer):
    """The same tokens whatever the prompt is: more than one logit is taken for those of an answer."""

    def score(self, context: SelectionContext) -> Tensor:
        return (torch.arange(context.valid.shape[1]) % 3 == 0).float().expand(context.valid.shape)


@pytest.mark.parametrize("output", ["expand", "compact"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("number", [1, 3, 7])
def test_last_logits_alone_are_those_of_the_full_output(number: int, side: str, output: Any) -> None:
    """In the compact output, which has another length than the ids, this model does not cut them."""
    model, batch = model_of(), batch_of((1, 2), side)
    with torch.no_grad(), attach(model, EveryThird(keep=5), output=output):
        some = model(**given(batch), logits_to_keep=number).logits
        every = model(**given(batch)).logits
    assert some.shape[1] == number or output == "compact"
    torch.testing.assert_close(some[:, -number:], every[:, -number:], rtol=1e-4, atol=1e-4)


def test_second_budget_in_the_same_forward_has_keys_of_its_own() -> None:
    model, batch = model_of(), batch_of(labels=True)
    with torch.no_grad(), attach(model, DART(keep=5)) as attached:
        student = model(**given(batch), use_cache=False).logits
        with attached.with_teacher(1.0):
            both = model(**given(batch), use_cache=False).logits
        attached.set_keep(1.0)
        teacher = model(**given(batch), use_cache=False).logits
    torch.testing.assert_close(both, torch.cat([student, teacher]), rtol=1e-4, atol=1e-4)


def test_both_outputs_give_the_same_gradients() -> None:
    model, batch = new_model(), batch_of(labels=True)
    found = []
    for output in ("expand", "compact"):
        with attach(model, DART(keep=5), output=output):
            found.append(gradients(model, given(batch)))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)


def test_layer_after_the_shared_keys_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers 4 to 4 use the keys of layers \[2\].* use layer <= 2"):
        attach(model_of(), DART(keep=5, layer=3))
    with pytest.raises(ValueError, match=r"layers 4 to 5 use the keys of layers \[2, 3\].* use layer <= 2"):
        attach(model_of(), [DART(keep=8, layer=2), FastV(keep=5, layer=4)])
