"""Unsupported requests are refused: what was given, what was expected, what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dart_train import DART, Balance, FastV, Pooling, UniformGrid, attach
from dart_train.hooks.masks import check_window
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import ROUNDING, batch_of, model_of
from tests.zoo import FAMILIES

LLAVA = "llava"


def refused(error: type[Exception], words: str, batch: dict[str, Any] | None = None, **extra: Any) -> None:
    model = model_of(LLAVA)
    with pytest.raises(error, match=words), torch.no_grad(), attach(model, DART(keep=8)):
        model(**({**batch_of(LLAVA, (1,)), **(batch or {})} | extra))


@pytest.mark.parametrize("keep", [0, -3, True, 2.5, 0.0, "64", None, float("nan")])
def test_invalid_budgets(keep: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a number of tokens .* or a ratio"):
        DART(keep=keep)


@pytest.mark.parametrize("layer", [5, 99])
def test_layers_outside_the_model(layer: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 4, the model has 5 layers"):
        attach(model_of(LLAVA), DART(keep=8, layer=layer))


@pytest.mark.parametrize("method", [FastV, Balance])
def test_attention_before_the_first_layer(method: Any) -> None:
    with pytest.raises(ValueError, match="no attention before the first layer"):
        attach(model_of(LLAVA), method(keep=8, layer=0))


def test_stages_out_of_order_and_all_problems_at_once() -> None:
    stages = [DART(keep=8, layer=3), FastV(keep=4, layer=0), DART(keep=4, layer=9, per="image")]
    with pytest.raises(ValueError) as error:
        attach(model_of(LLAVA), stages)
    for word in ("layer=9", "come after", "per the same", "no attention before"):
        assert word in str(error.value)


def test_two_stages_at_one_layer() -> None:
    with pytest.raises(ValueError, match=r"stages at layers \[2, 2\]: expected each to come after the one before"):
        attach(model_of(LLAVA), [DART(keep=8, layer=2), DART(keep=4, layer=2)])


def test_something_that_is_not_a_reducer() -> None:
    for wrong in ([], "dart", [DART(keep=8), "fastv"]):
        with pytest.raises(ValueError, match="expected a reducer or a list"):
            attach(model_of(LLAVA), wrong)  # type: ignore[arg-type]


def test_second_attach() -> None:
    model = model_of(LLAVA)
    with attach(model, DART(keep=8)), pytest.raises(ValueError, match="attached to this model already"):
        attach(model, DART(keep=4))


def test_unknown_output() -> None:
    with pytest.raises(ValueError, match="expected 'expand' or 'compact'"):
        attach(model_of(LLAVA), DART(keep=8), output="short")  # type: ignore[arg-type]


def test_packed_sequences_of_unknown_form() -> None:
    """Rows of one sequence are packed rows (test_packing.py); several such sequences, or `seq_idx`, are not."""
    length = batch_of(LLAVA, (1, 1))["input_ids"].shape[1]
    again = torch.cat([torch.arange(length - 5), torch.arange(5)])[None]
    batch = {**batch_of(LLAVA, (1, 1)), "attention_mask": None, "position_ids": again.expand(2, -1)}
    refused(NotImplementedError, "start again", batch)
    refused(NotImplementedError, "seq_idx", seq_idx=torch.zeros(1, 5, dtype=torch.int32))


def test_masks_of_unknown_form() -> None:
    length = batch_of(LLAVA, (1,))["input_ids"].shape[1]
    refused(
        ValueError,
        "Give the mask that the processor makes",
        {"attention_mask": torch.ones(1, 1, length, length)},
    )
    refused(ValueError, "attention_mask is a dict", {"attention_mask": {"full_attention": None}})


def test_images_without_input_ids() -> None:
    model, batch = model_of(LLAVA), dict(batch_of(LLAVA, (1,)))
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ValueError, match="needed to find the visual tokens"), attach(model, DART(keep=8)):
        model(**batch, inputs_embeds=embeds)


def test_positions_of_logits_in_short_output() -> None:
    model = model_of(LLAVA)
    with pytest.raises(ValueError, match="output='expand'"), attach(model, DART(keep=8), output="compact"):
        model(**batch_of(LLAVA, (1,)), logits_to_keep=torch.tensor([3]))


def gemma_with_a_window(window: int) -> Any:
    model = FAMILIES["gemma3"].model()
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "sliding_window"):
            module.config.sliding_window = window
    return model


def test_decoding_past_a_window_with_a_kernel_that_counts_kept_tokens() -> None:
    config = gemma_with_a_window(8).config.text_config
    config._attn_implementation = "flash_attention_2"
    check_window(config, 0, 8)
    with pytest.raises(NotImplementedError, match=r"sliding window of 8, and 9 tokens came in: .*sdpa or eager"):
        check_window(config, 0, 9)


def test_training_may_be_longer_than_the_window() -> None:
    """There the mask is gathered by position; it is the masked forward still."""
    model, batch = gemma_with_a_window(8), batch_of("gemma3")
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        logits = model(**batch).logits
    assert attached.last is not None
    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, attached.last.mask)])
        assert first_difference(truth, model_of("gemma3")(**batch).logits, attached.last.mask) > 1e-3
    assert first_difference(logits, truth, attached.last.mask) < ROUNDING


def test_method_that_needs_an_unknown_grid() -> None:
    model = FAMILIES[LLAVA].model()
    model.config.model_type = "somebody_elses"
    for method in (Pooling, UniformGrid):
        with pytest.raises(ValueError, match="somebody_elses"), attach(model, method(keep=8)):
            model(**batch_of(LLAVA, (1,)))
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        model(**batch_of(LLAVA, (1,)))
    assert attached.last is not None and attached.last.visual_after == (8,)


def test_model_without_images_reports_what_it_lacks() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with pytest.raises(NotImplementedError, match=r"lacks `config\.image_token_id`"):
        attach(LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)), DART(keep=8))


def test_keys_that_were_not_observed() -> None:
    model = model_of(LLAVA)
    with (
        pytest.raises(RuntimeError, match="keys of layer 1 were not observed"),
        attach(model, DART(keep=8)) as attached,
    ):
        for handle in [h for h in attached._handles if h.hooks_dict_ref() is _pre_hooks(model)]:
            handle.remove()
        model(**batch_of(LLAVA, (1,)))


def _pre_hooks(model: Any) -> Any:
    return model.get_decoder().layers[1].self_attn._forward_pre_hooks
