"""Compact positions at K = 0: the reduced model is the plain one on the embeddings of the kept tokens, whose positions
are 0, 1, 2, ..."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, Random, Reducer, UniformGrid, attach
from dart_train.hooks.transformers_compat import cache_argument, cache_in_output
from dart_train.models.structure import find_parts
from tests.fixtures.reference_forward import first_difference
from tests.laws.cases import ROUNDING, batch_of, model_of, new_tokens

NAMES = ("llava", "llava_next", "llava_onevision", "internvl", "idefics3")
SERVED = DART(keep=6, layer=0, text_pivots=0, pivot="key_min", per="image", positions="compact")


def embeddings_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """[B, L, D]: what the decoder's first layer gets, images merged in."""
    found: list[Tensor] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        found.append(args[0])

    handle = find_parts(model).layers[0].register_forward_pre_hook(record, with_kwargs=True)
    try:
        model(**batch)
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def shortened_logits(model: Any, batch: dict[str, Tensor], keep: Tensor, embeddings: Tensor) -> list[Tensor]:
    """Of each row, the plain decoder on the kept tokens alone, without padding and with positions of its own."""
    parts = find_parts(model)
    rows = []
    for row, mask in enumerate(keep & batch["attention_mask"].bool()):
        states = parts.text(inputs_embeds=embeddings[row, mask][None]).last_hidden_state
        rows.append(model.lm_head(states)[0])
    return rows


def assert_shortened(model: Any, batch: dict[str, Tensor], reducer: Reducer | list[Reducer]) -> None:
    embeddings = embeddings_of(model, batch)
    with torch.no_grad(), attach(model, reducer) as attached:
        logits = model(**batch).logits
        assert attached.last is not None
        keep = attached.last.mask
    assert bool((~keep & batch["attention_mask"].bool()).any())  # something was dropped
    for row, plain in enumerate(shortened_logits(model, batch, keep, embeddings)):
        mask = keep[row] & batch["attention_mask"][row].bool()
        reduced = logits[row, mask]
        assert first_difference(reduced, plain, torch.ones(len(plain), dtype=torch.bool)) < ROUNDING


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "attn"), [*((name, "sdpa") for name in NAMES), ("llava", "eager")])
def test_compact_is_the_plain_model_on_shortened_embeddings(name: str, side: str, attn: str) -> None:
    """Of the rows, one has one image, one two, and one none."""
    assert_shortened(model_of(name, attn), batch_of(name, (1, 2, 0), side=side), SERVED)


@pytest.mark.parametrize("reducer", [
    Random(keep=5, layer=0, positions="compact"),
    UniformGrid(keep=0.25, layer=0, per="image", positions="compact"),
])  # fmt: skip
def test_other_methods(reducer: Reducer) -> None:
    assert_shortened(model_of("llava"), batch_of("llava"), reducer)


def test_original_positions_differ_from_compact_ones() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1, 2, 0))
    logits = {}
    for positions in ("original", "compact"):
        with torch.no_grad(), attach(model, DART(keep=6, layer=0, positions=positions)) as attached:
            logits[positions] = model(**batch).logits
            assert attached.last is not None
            keep = attached.last.mask
    real = batch["attention_mask"].bool()
    text_row = (attached.last.visual.sum(1) == 0)[:, None] & real
    assert first_difference(logits["compact"], logits["original"], keep & real & ~text_row) > 1e-3
    assert torch.equal(logits["compact"][text_row], logits["original"][text_row])


def test_keep_all_is_the_plain_model() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    plain = new_tokens(model, batch)
    with attach(model, DART(keep=1.0, layer=0, positions="compact")):
        assert torch.equal(new_tokens(model, batch), plain)


@pytest.mark.parametrize(("name", "beams"), [("llava", 1), ("llava", 3), ("llava_next", 1), ("idefics3", 1)])
def test_cached_generation_equals_recomputation(name: str, beams: int) -> None:
    model, batch = model_of(name), batch_of(name)
    with attach(model, SERVED):
        cached = new_tokens(model, batch, num_beams=beams)
        assert torch.equal(cached, new_tokens(model, batch, num_beams=beams, use_cache=False))


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_positions", [True, False])
def test_decoding_goes_on_from_the_compact_length(with_mask: bool, with_positions: bool) -> None:
    """Step by step without `generate`, which gives position ids: with them and without, with a mask and without."""
    model, batch = model_of("llava"), batch_of("llava", (1,))
    embeddings, length = embeddings_of(model, batch), batch["input_ids"].shape[1]
    tokens = torch.tensor([[5, 9, 11]])
    with torch.no_grad(), attach(model, SERVED) as attached:
        given = {name: x for name, x in batch.items() if with_mask or name != "attention_mask"}
        output = model(**given, use_cache=True)
        assert attached.last is not None
        keep, steps = attached.last.mask[0], []
        for number, token in enumerate(tokens[0]):
            extra: dict[str, Any] = {"position_ids": torch.tensor([[length + number]])} if with_positions else {}
            if with_mask:
                extra["attention_mask"] = torch.ones(1, length + number + 1, dtype=torch.long)
            extra[cache_argument(model.forward)] = cache_in_output(output)
            output = model(input_ids=token[None, None], **extra)
            steps.append(output.logits[0, -1])
    parts = find_parts(model)
    with torch.no_grad():
        longer = torch.cat([embeddings[0, keep], parts.text.embed_tokens(tokens)[0]])[None]
        plain = model.lm_head(parts.text(inputs_embeds=longer).last_hidden_state)[0, -3:]
    assert first_difference(torch.stack(steps), plain, torch.ones(3, dtype=torch.bool)) < ROUNDING


@pytest.mark.parametrize("rows", [(1,), (1, 2, 0)])
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_several_new_tokens_are_the_same_as_one_after_the_other(positions: Any, rows: tuple[int, ...]) -> None:
    """On a cache whose first layer is short too: none of them sees a later one."""
    model, batch = model_of("llava"), batch_of("llava", rows)
    tokens = torch.tensor([[5, 9, 11, 7]]).expand(len(rows), -1)
    results = []
    for chunks in (tokens.split(4, 1), tokens.split(1, 1)):
        with torch.no_grad(), attach(model, replace(SERVED, positions=positions)):
            output, mask, logits = model(**batch, use_cache=True), batch["attention_mask"], []
            for chunk in chunks:
                mask = torch.cat([mask, torch.ones_like(chunk)], 1)
                cache = {cache_argument(model.forward): cache_in_output(output)}
                output = model(input_ids=chunk, attention_mask=mask, **cache)
                logits.append(output.logits)
        results.append(torch.cat(logits, 1))
    assert first_difference(*results, torch.ones(len(rows), 4, dtype=torch.bool)) < ROUNDING


def test_a_second_image_in_a_later_turn() -> None:
    """On the same cache: as if both turns had come at once, each reduced by itself."""
    model = model_of("llava")
    first = second = batch_of("llava", (1,))
    both = {"input_ids": torch.cat([first["input_ids"], second["input_ids"]], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    both["pixel_values"] = torch.cat([first["pixel_values"], second["pixel_values"]])
    embeddings = embeddings_of(model, both)
    with torch.no_grad(), attach(model, SERVED) as attached:
        cache = cache_in_output(model(**first, use_cache=True))
        assert attached.last is not None
        keep = attached.last.mask
        mask = torch.ones_like(both["input_ids"])
        later = model(**{**second, "attention_mask": mask, cache_argument(model.forward): cache}).logits
        assert attached.last is not None
        keep_later = attached.last.mask
    (plain,) = shortened_logits(model, both, torch.cat([keep, keep_later], 1), embeddings)
    assert first_difference(later[0, keep_later[0]][-1], plain[-1], torch.tensor(True)) < ROUNDING


@pytest.mark.parametrize("layer", [1, 2])
def test_compact_after_layer_0_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"positions='compact' at layer={layer}: .*original positions"):
        DART(keep=8, layer=layer, positions="compact")


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_compact_is_refused_where_positions_are_not_a_line(name: str) -> None:
    with pytest.raises(ValueError, match="positions='compact': expected a model whose positions are 0, 1, 2"):
        attach(model_of(name), SERVED)


def test_a_later_stage_has_the_new_positions_too() -> None:
    """The second stage drops nothing but what a mask hides from its layers on, in the compact sequence."""
    model, batch = model_of("llava"), batch_of("llava", (1, 2, 0))
    first = DART(keep=12, layer=0, positions="compact")
    with torch.no_grad(), attach(model, [first, DART(keep=1.0, layer=2)]):
        two = model(**batch).logits
    with torch.no_grad(), attach(model, first):
        one = model(**batch).logits
    real = batch["attention_mask"].bool()
    assert first_difference(two, one, real) < ROUNDING


def test_compact_positions_are_written_and_read(tmp_path: Any) -> None:
    from dart_train import from_config

    assert from_config(SERVED.to_dict()) == SERVED and SERVED.to_dict()["positions"] == "compact"
