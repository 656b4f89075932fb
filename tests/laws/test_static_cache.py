"""A static cache gives what the dynamic one does: short layers fill fewer slots of the same buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from dart_train import DART, FastV, KeepAll, Random, attach
from dart_train.hooks.transformers_compat import cache_argument, check_static_cache
from tests.laws.cases import batch_of, model_of
from tests.zoo import FAMILIES

DART8 = DART(keep=8, image_pivots=2, text_pivots=2)
STAGES = [DART(keep=12, layer=1), Random(keep=6, layer=3)]
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "output_logits": True,
           "return_dict_in_generate": True}  # fmt: skip


def agree(model: Any, batch: dict[str, Any], reducer: Any, **options: Any) -> None:
    with torch.no_grad(), attach(model, reducer) as attached:
        wanted = model.generate(**batch, **OPTIONS, **options, cache_implementation="dynamic")
        kept = attached.last
        found = model.generate(**batch, **OPTIONS, **options, cache_implementation="static")
        assert attached.last is not None and kept is not None and torch.equal(attached.last.mask, kept.mask)
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "smolvlm"])
def test_generation_is_that_of_the_dynamic_cache(name: str, attn: str) -> None:
    agree(model_of(name, attn), batch_of(name), DART8)


@pytest.mark.parametrize("reducer", [STAGES, FastV(keep=8), FastV(keep=8, row="own"), Random(keep=5, layer=0)], ids=str)
def test_stages_attention_rows_and_layer_0(reducer: Any) -> None:
    agree(model_of("llava"), batch_of("llava"), reducer)


def test_one_row_and_beams() -> None:
    agree(model_of("llava"), batch_of("llava", (1,)), DART8)
    agree(model_of("qwen2_vl"), batch_of("qwen2_vl"), DART8, num_beams=2)


def test_keep_all_is_the_plain_model() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    with torch.no_grad():
        wanted = model.generate(**batch, **OPTIONS, cache_implementation="static")
        with attach(model, KeepAll(layer=2)):
            found = model.generate(**batch, **OPTIONS, cache_implementation="static")
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits))


def test_short_layers_hold_only_kept_tokens() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    length = batch["input_ids"].shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + 4)
    with torch.no_grad(), attach(model, DART8) as attached:
        model(**batch, **{cache_argument(model.forward): cache}, use_cache=True)
        assert attached.last is not None
        short = attached.last.length
    assert [int(cache.get_seq_length(layer)) for layer in range(5)] == [length] * 2 + [short] * 3
    assert not cache.layers[4].keys[:, :, short:].any()


@pytest.mark.slow
def test_compiled_decoding_answers_alike() -> None:
    """The graph of the model around the hooks; `eager` stands for the compiler that needs a C++ toolchain."""
    from transformers import CompileConfig

    model, batch = FAMILIES["llava"].model(), batch_of("llava")
    config = CompileConfig(backend="eager", mode=None, fullgraph=False, dynamic=True)
    config._compile_all_devices = True
    try:
        agree(model, batch, DART8, compile_config=config)
    finally:
        torch._dynamo.reset()


def test_what_cannot_be_masked_is_refused() -> None:
    model = FAMILIES["gemma3"].model()
    window = StaticCache(config=model.config, max_cache_len=600)  # its window is 512
    with pytest.raises(NotImplementedError, match=r"512 slots for a sliding window.*Use the dynamic cache"):
        check_static_cache(window, "sdpa")
    with pytest.raises(NotImplementedError, match="only sdpa and eager"):
        check_static_cache(StaticCache(config=model_of("llava").config, max_cache_len=9), "flash_attention_2")
    with attach(model, DART8), pytest.raises(NotImplementedError, match="512 slots"), torch.no_grad():
        model(**batch_of("gemma3"), **{cache_argument(model.forward): window}, use_cache=True)
