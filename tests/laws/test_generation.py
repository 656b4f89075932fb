"""Generation with a cache is generation without one; the selection depends on the prompt only."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from dart_train import DART, REDUCERS, FastV, KeepAll, UniformGrid, attach
from dart_train.hooks.batch_plan import GenerateCall
from dart_train.hooks.cache_state import CacheState
from dart_train.hooks.transformers_compat import cache_argument, cache_in_output
from tests.fixtures.reference_forward import masked_logits
from tests.laws.cases import KERNELS, METHODS, NAMES, ROUNDING, batch_of, model_of, new_tokens, reducer_of
from tests.zoo import conversation, encode

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_cached_generation_equals_recomputation(name: str, attn: str, beams: int) -> None:
    model, batch = model_of(name, attn), batch_of(name)
    with attach(model, DART(keep=8)) as attached:
        cached = new_tokens(model, batch, num_beams=beams)
        assert attached.last is not None
        assert attached.last.visual_after == tuple(min(8, n) for n in attached.last.visual_before)
        assert torch.equal(cached, new_tokens(model, batch, num_beams=beams, use_cache=False))


PER_IMAGE = ("llava_onevision", "qwen2_5_vl", "idefics3")


@pytest.mark.parametrize(
    ("method", "layer", "name"),
    [
        (method, layer, PER_IMAGE[(number + layer) % 3])
        for number, method in enumerate(METHODS)
        for layer in (0, 1, 2)
        if layer or "attention" not in REDUCERS[method].requires
    ],
)
def test_every_method_generates_alike_with_and_without_a_cache(method: str, layer: int, name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    with attach(model, reducer_of(method, 7, layer=layer, per="image")):
        cached = new_tokens(model, batch)
        assert torch.equal(cached, new_tokens(model, batch, use_cache=False))


def test_rows_of_one_length_keep_different_numbers_of_tokens() -> None:
    """There is no padding, so that the model gives its layers no mask; those after K need one."""
    model, one, two = model_of("llava"), batch_of("llava", (1,)), batch_of("llava", (2,))
    ids = one["input_ids"]
    text = ids[:, -1:].expand(-1, two["input_ids"].shape[1] - ids.shape[1])  # in place of the second image
    batch = {
        "input_ids": torch.cat([torch.cat([ids[:, :1], text, ids[:, 1:]], 1), two["input_ids"]]),
        "pixel_values": torch.cat([one["pixel_values"], two["pixel_values"]]),
    }
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    options = {"do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True}
    with attach(model, DART(keep=8)) as attached:
        cached, plain = (
            torch.stack(model.generate(**batch, use_cache=use, return_dict_in_generate=True, **options).logits)
            for use in (True, False)
        )
        torch.testing.assert_close(cached, plain, rtol=1e-4, atol=1e-4)
        assert attached.last is not None and attached.last.visual_before == (64, 128)


@pytest.mark.parametrize("name", NAMES)
def test_two_stages_generate_alike_with_and_without_a_cache(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    with attach(model, [DART(layer=1, keep=12), FastV(layer=3, keep=5)]):
        cached = new_tokens(model, batch, num_beams=2)
        assert torch.equal(cached, new_tokens(model, batch, num_beams=2, use_cache=False))


@pytest.mark.parametrize("output", ["expand", "compact"])
@pytest.mark.parametrize("name", NAMES)
def test_each_step_is_the_masked_forward(name: str, output: Any) -> None:
    """Greedy tokens step by step against the full-length forward that hides what the prefill dropped."""
    model, batch = model_of(name), batch_of(name, (1, 2))
    with attach(model, DART(keep=8), output=output) as attached:
        tokens = new_tokens(model, batch, 4)
        assert attached.last is not None
        keep = attached.last.mask
    longer = {**batch, "input_ids": torch.cat([batch["input_ids"], tokens], 1)}
    for mask in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
        if mask in batch:
            filler = torch.full_like(tokens, int(mask == "attention_mask"))
            longer[mask] = torch.cat([batch[mask], filler], 1)
    keep = torch.cat([keep, torch.ones_like(tokens, dtype=torch.bool)], 1)
    with torch.no_grad():
        logits = masked_logits(model, longer, [(2, keep)])
    visual = [i for i in (getattr(model.config, n, None) for n in ("image_token_id", "video_token_id")) if i]
    logits[..., visual] = -torch.inf  # never generated here
    predicted = logits[:, batch["input_ids"].shape[1] - 1 : -1].clone()
    eos = model.generation_config.eos_token_id
    predicted[..., [eos] if isinstance(eos, int) else eos or []] = -torch.inf  # min_new_tokens forbids it
    assert torch.equal(predicted.argmax(-1), tokens)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_prompt_lookup_drafts_do_not_influence_the_selection(name: str) -> None:
    model, batch = model_of(name), batch_of(name, (1,))
    with attach(model, DART(keep=8)):
        plain = new_tokens(model, batch, 8)
        assert torch.equal(new_tokens(model, batch, 8, prompt_lookup_num_tokens=3), plain)


def turn_by_turn(model: Any, name: str, keep: int) -> tuple[Any, Any, Any]:
    """Two turns, an image in each: the second continues the first one's cache."""
    first, _ = conversation(1, "what is here", "a red one", seed=1)
    second, _ = conversation(1, "and which is here", seed=2)
    both = encode(name, [first + second])
    visual = both["input_ids"][0] == model.config.image_token_id
    edges = torch.diff(visual.int()).nonzero().flatten().tolist()  # before and at the end of each image
    split = edges[2] - 2
    images = {k: v for k, v in both.items() if k in ("pixel_values", "image_sizes")}
    ids, mask = both["input_ids"], both["attention_mask"]
    with torch.no_grad(), attach(model, DART(keep=keep)) as attached:
        now = {k: v[:1] for k, v in images.items()}
        cache = model(input_ids=ids[:, :split], attention_mask=mask[:, :split], use_cache=True, **now)
        before, cache = attached.last, cache_in_output(cache)
        later = {k: v[1:] for k, v in images.items()}
        later[cache_argument(model.forward)] = cache
        logits = model(input_ids=ids[:, split:], attention_mask=mask, **later).logits
    return both, logits, (before, attached.last)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_image_in_a_later_turn_is_reduced_too_and_earlier_positions_stay(name: str) -> None:
    model = model_of(name)
    both, logits, (before, after) = turn_by_turn(model, name, 8)
    assert before.visual_after == (8,) and after.visual_after == (8,)
    keep = torch.cat([before.mask, after.mask], 1)
    with torch.no_grad():
        truth = masked_logits(model, both, [(2, keep)])[:, -logits.shape[1] :]
    difference = (logits - truth)[after.mask].abs().max() / truth.abs().max()
    assert difference < ROUNDING


def test_second_generate_continues_from_the_first_ones_cache() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    with attach(model, DART(keep=8)):
        first = model.generate(
            **batch, do_sample=False, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True
        )
        rest = model.generate(
            input_ids=first.sequences,
            attention_mask=torch.ones_like(first.sequences),
            **{cache_argument(model.generate): cache_in_output(first)},
            do_sample=False,
            max_new_tokens=4,
            min_new_tokens=4,
        )
        everything = model.generate(**batch, do_sample=False, max_new_tokens=8, min_new_tokens=8)
    assert torch.equal(rest, everything)


def test_forward_after_generate_has_a_prompt_of_its_own() -> None:
    """Also where `generate` has failed."""
    model, batch = model_of("llava"), batch_of("llava", (1,), labels=True)
    prompt = {name: x for name, x in batch.items() if name != "labels"}
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        for options in ({"max_new_tokens": 1}, {"max_new_tokens": 0}):
            with nullcontext() if options["max_new_tokens"] else pytest.raises(ValueError):
                model.generate(**prompt, do_sample=False, **options)
            assert attached._engine.generate_call is None
        model(**batch)
        assert attached.last is not None
        after = attached.last.mask
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        model(**batch)
        assert attached.last is not None and torch.equal(attached.last.mask, after)


def test_drafts_in_the_first_forward_are_not_part_of_the_cached_prompt() -> None:
    """Assisted decoding may reject them, and then crops the cache."""
    model, batch = model_of("llava"), batch_of("llava", (1,))
    length = batch["input_ids"].shape[1]
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        attached._engine.generate_call = GenerateCall(1, length - 3, batch)
        cache = cache_in_output(model(**batch, use_cache=True))
        assert attached.last is not None
    state = CacheState.of(cache)
    assert state is not None and state.length == length - 3
    assert state.valid[0].shape == (1, attached.last.length - 3)


def test_cache_length_of_each_layer() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    with torch.no_grad(), attach(model, DART(keep=8)):
        cache = cache_in_output(model(**batch, use_cache=True))
    full, short = batch["input_ids"].shape[1], batch["input_ids"].shape[1] - 64 + 8
    assert [cache.get_seq_length(i) for i in range(5)] == [full, full, short, short, short]


@pytest.mark.parametrize("name", NAMES)
def test_text_only_generation_is_unchanged(name: str) -> None:
    model, batch = model_of(name), batch_of(name, (0, 0))
    plain = new_tokens(model, batch)
    for reducer in (DART(keep=4), KeepAll(layer=0)):
        with attach(model, reducer) as attached:
            assert torch.equal(new_tokens(model, batch), plain)
            assert attached.last is None


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_next_position_is_found_without_position_ids(name: str, layer: int, at_once: int) -> None:
    """A custom loop without `generate`, of one word at a time or all at once: the model takes the next position from
    the length of layer 0's cache, which at K = 0 holds the kept tokens only."""
    model, batch = model_of(name), batch_of(name, (1,))
    words = batch["input_ids"][:, -3:]
    with torch.no_grad(), attach(model, UniformGrid(keep=8, layer=layer)):  # does not use text: more words may follow
        output = model(**batch, use_cache=True)
        for some in words.split(at_once, 1):
            cache = cache_in_output(output)
            output = model(input_ids=some, **{cache_argument(model.forward): cache}, use_cache=True)
    longer = {**batch, "input_ids": torch.cat([batch["input_ids"], words], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    longer.update({k: torch.cat([v, v.new_zeros(1, 3)], 1) for k, v in batch.items() if k in TOKEN_TYPES})
    with torch.no_grad(), attach(model, UniformGrid(keep=8, layer=layer)):
        wanted = model(**longer, use_cache=False).logits
    torch.testing.assert_close(output.logits[:, -at_once:], wanted[:, -at_once:], rtol=1e-4, atol=1e-4)
