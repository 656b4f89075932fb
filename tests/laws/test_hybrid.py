"""Models whose layers are linear attention or short convolutions, with a full attention layer now and then.

Their state runs over the tokens, so that the masked forward is no reference for them: the reduced forward is held
against the plain layers on hand-gathered tokens.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dart_train import DART, FastV, KeepAll, Random, attach, check
from dart_train.hooks.reference import masked_logits
from dart_train.hooks.transformers_compat import cache_argument, cache_in_output
from tests.fixtures.gathered_forward import gathered_logits
from tests.fixtures.reference_forward import first_difference
from tests.laws.cases import IMAGES, KERNELS, new_tokens
from tests.laws.test_keep_all import gradients
from tests.zoo import HYBRIDS, conversation, encode, every_model, make_batch
from tests.zoo.lfm2 import build_lfm2, lfm2_batch
from tests.zoo.survey import batch as survey_batch
from tests.zoo.survey import find_form, fresh, image_id, row_of

MODELS = ("qwen3_5", "lfm2_vl")  # both have attention at layers 1 and 4 of 5
ROUNDING = 2e-4  # relative, float32: a recurrence adds up more rounding than attention does
TOKEN_TYPES = ("mm_token_type_ids",)


def fresh_model(name: str, attn: str = "sdpa") -> Any:
    return build_lfm2(attn) if name == "lfm2_vl" else HYBRIDS[name].model(attn)


@cache
def model_of(name: str, attn: str = "sdpa") -> Any:
    return fresh_model(name, attn)


@cache
def batch_of(name: str, images: tuple[int, ...] = (1, 2, 0), side: str = "left", labels: bool = False) -> Any:
    if name == "lfm2_vl":
        return lfm2_batch(images, side, labels)
    return make_batch(name, images=images, padding_side=side, labels=labels)


def forward(model: Any, batch: dict[str, Tensor], reducer: Any, **options: Any) -> tuple[Any, Any]:
    with torch.no_grad(), attach(model, reducer, **options) as attached:
        return model(**batch), attached.last


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", MODELS)
def test_reduced_forward_is_the_layers_on_gathered_tokens(
    name: str, layer: int, attn: str, images: tuple[int, ...], side: str
) -> None:
    model, batch = model_of(name, attn), batch_of(name, images, side)
    output, kept = forward(model, batch, DART(keep=6, layer=layer))
    assert kept.visual_after == tuple(min(6, n) for n in kept.visual_before)
    with torch.no_grad():
        truth = gathered_logits(model, batch, [(layer, kept.mask)])
    assert first_difference(output.logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("layers", [(0, 2), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_two_stages_gather_twice(name: str, layers: tuple[int, int]) -> None:
    model, batch = model_of(name), batch_of(name)
    output, kept = forward(model, batch, [DART(layer=layers[0], keep=10), Random(layer=layers[1], keep=4)])
    with torch.no_grad():
        truth = gathered_logits(model, batch, list(zip(layers, kept.stages, strict=True)))
    assert first_difference(output.logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", MODELS)
def test_keep_all_is_the_plain_model(name: str, attn: str, side: str) -> None:
    model, batch = model_of(name, attn), batch_of(name, side=side, labels=True)
    with torch.no_grad():
        plain = model(**batch)
    for layer in (0, 2):
        kept, _ = forward(model, batch, KeepAll(layer=layer))
        assert first_difference(kept.logits, plain.logits, batch["attention_mask"].bool()) < ROUNDING
        torch.testing.assert_close(kept.loss, plain.loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_cached_generation_is_recomputation(name: str, layer: int, beams: int) -> None:
    """The recurrent state continues from the kept tokens; and keep-all generates what the plain model does."""
    model, batch = model_of(name), batch_of(name)
    with attach(model, DART(keep=6, layer=layer)):
        cached = new_tokens(model, batch, num_beams=beams)
        assert torch.equal(cached, new_tokens(model, batch, num_beams=beams, use_cache=False))
    plain = new_tokens(model, batch, num_beams=beams)
    with attach(model, KeepAll(layer=layer)):
        assert torch.equal(new_tokens(model, batch, num_beams=beams), plain)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_each_step_is_the_layers_on_gathered_tokens(name: str, layer: int) -> None:
    model, batch = model_of(name), batch_of(name, (1, 2))
    with attach(model, DART(keep=6, layer=layer)) as attached:
        options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 4, "min_new_tokens": 4}
        visual = [i for i in (getattr(model.config, n, None) for n in ("image_token_id", "video_token_id")) if i]
        output = model.generate(**batch, do_sample=False, suppress_tokens=visual, **options)
        keep = attached.last.mask
    new = output.sequences[:, batch["input_ids"].shape[1] :]
    longer = {**batch, "input_ids": output.sequences, "attention_mask": with_ones(batch["attention_mask"], new)}
    longer |= {k: torch.cat([batch[k], new * 0], 1) for k in TOKEN_TYPES if k in batch}
    with torch.no_grad():
        truth = gathered_logits(model, longer, [(layer, with_ones(keep, new))])
    for step, logits in enumerate(output.logits):
        wanted = truth[:, batch["input_ids"].shape[1] - 1 + step]
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def with_ones(mask: Tensor, new: Tensor) -> Tensor:
    return torch.cat([mask, torch.ones_like(new, dtype=mask.dtype)], 1)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_custom_loop_finds_the_next_position(name: str, layer: int) -> None:
    """Also where the first layer that has keys is short: the model takes the next position from its length."""
    model, batch = model_of(name), batch_of(name, (1,))
    words = batch["input_ids"][:, -3:]
    with torch.no_grad(), attach(model, DART(keep=4, layer=layer)) as attached:
        output = model(**batch, use_cache=True)
        keep = attached.last.mask
        for word in words.unbind(1):
            output = model(input_ids=word[:, None], **{cache_argument(model.forward): cache_in_output(output)})
    longer = {**batch, "input_ids": torch.cat([batch["input_ids"], words], 1)}
    longer["attention_mask"] = torch.ones_like(longer["input_ids"])
    longer |= {k: torch.cat([batch[k], words * 0], 1) for k in TOKEN_TYPES if k in batch}
    with torch.no_grad():
        truth = gathered_logits(model, longer, [(layer, with_ones(keep, words))])
    assert first_difference(output.logits[:, -1], truth[:, -1], torch.ones(1, dtype=torch.bool)) < ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_batch_is_its_samples_one_by_one(name: str) -> None:
    # LFM2-VL's rotary embeddings count padding on the left, which moves the keys that pivots are chosen by.
    model, batch = model_of(name), batch_of(name, (1, 1), "right" if name == "lfm2_vl" else "left")
    output, kept = forward(model, batch, DART(keep=6, layer=2))
    for row in range(2):
        real = batch["attention_mask"][row].bool()
        alone = {k: batch[k][row : row + 1, real] for k in ("input_ids", "attention_mask", *TOKEN_TYPES) if k in batch}
        for image in {"pixel_attention_mask", "spatial_shapes", "image_grid_thw"} & batch.keys():
            alone[image] = batch[image][row : row + 1]
        sizes = batch["image_grid_thw"].prod(1).tolist() if name == "qwen3_5" else 1
        alone["pixel_values"] = batch["pixel_values"].split(sizes)[row]
        single, kept_alone = forward(model, alone, DART(keep=6, layer=2))
        assert torch.equal(kept.mask[row][real], kept_alone.mask[0])
        difference = (output.logits[row][real] - single.logits[0])[kept_alone.mask[0]].abs().max()
        assert difference < ROUNDING * single.logits.abs().max()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", MODELS)
def test_both_outputs_give_the_loss_on_gathered_tokens(name: str, side: str) -> None:
    model, batch = model_of(name), batch_of(name, side=side, labels=True)
    losses = {}
    for output in ("expand", "compact"):
        reduced, kept = forward(model, batch, DART(keep=6, layer=2), output=output)
        losses[output] = reduced.loss
    with torch.no_grad():
        logits = gathered_logits(model, batch, [(2, kept.mask)])
    targets = batch["labels"][:, 1:]
    truth = torch.nn.functional.cross_entropy(logits[:, :-1][targets != -100], targets[targets != -100])
    for loss in losses.values():
        torch.testing.assert_close(loss, truth, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_survive_checkpointing(name: str, reentrant: bool) -> None:
    model, batch = fresh_model(name).train(), batch_of(name, labels=True)
    with attach(model, DART(layer=2, keep=6), output="compact"):
        plain = gradients(model, batch)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        again = gradients(model, batch)
    recurrent = [p for p in plain if ".linear_attn." in p or ".conv." in p]
    assert recurrent and all(p in again for p in recurrent)
    for parameter in plain.keys() & again.keys():
        size = float(plain[parameter].abs().max())
        torch.testing.assert_close(again[parameter], plain[parameter], rtol=1e-3, atol=1e-3 * size + 1e-6)


def test_attention_is_taken_from_the_last_layer_that_has_it() -> None:
    model, batch = model_of("qwen3_5"), batch_of("qwen3_5")
    with attach(model, [FastV(keep=8, layer=2), DART(keep=4, layer=4)]) as attached:
        # Layers 2 and 3, between the stages, have no keys.
        assert attached._engine.selection_inputs.observed_layers == [1, None]
    near, far = (forward(model, batch, FastV(keep=8, layer=layer))[1] for layer in (2, 3))
    assert torch.equal(near.mask, far.mask)


@pytest.mark.parametrize("layer", [0, 1])
def test_methods_that_read_attention_need_a_layer_that_has_it(layer: int) -> None:
    with pytest.raises(ValueError, match=r"this model's layers \[1, 4\] have them"):
        attach(model_of("lfm2_vl"), FastV(keep=8, layer=layer))


def test_image_in_a_later_turn_is_reduced_and_the_state_continues() -> None:
    """Two turns of Qwen3.5 on one cache: the second starts from the state that the first one's kept tokens left."""
    model = model_of("qwen3_5")
    first, _ = conversation(1, "what is here", "a red one", seed=1)
    second, _ = conversation(1, "and which is here", seed=2)
    both = encode("qwen3_5", [first + second])
    visual = both["input_ids"][0] == model.config.image_token_id
    split = torch.diff(visual.int()).nonzero().flatten().tolist()[2] - 2
    sizes = both["image_grid_thw"].prod(1).tolist()
    pixels = both["pixel_values"].split(sizes)

    def turn(image: int, part: slice) -> dict[str, Tensor]:
        words = {name: both[name][:, part] for name in ("input_ids", "mm_token_type_ids")}
        return {**words, "pixel_values": pixels[image], "image_grid_thw": both["image_grid_thw"][image : image + 1]}

    with torch.no_grad(), attach(model, DART(keep=6, layer=2)) as attached:
        output = model(**turn(0, slice(0, split)), use_cache=True)
        before, cache = attached.last, cache_in_output(output)
        later = {**turn(1, slice(split, None)), cache_argument(model.forward): cache}
        later["attention_mask"] = both["attention_mask"]
        positions = positions_of(model, both)[..., split:]
        logits = model(**later, position_ids=positions).logits
        after = attached.last
    keep = torch.cat([before.mask, after.mask], 1)
    with torch.no_grad():
        truth = gathered_logits(model, both, [(2, keep)])[:, split:]
    assert first_difference(logits, truth, after.mask) < ROUNDING


def positions_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    wanted = ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")
    positions, _ = model.model.get_rope_index(**{name: batch[name] for name in wanted})
    return positions


@pytest.mark.parametrize("attn", KERNELS)
def test_check_uses_gathered_tokens_as_its_reference(attn: str) -> None:
    model, batch = model_of("qwen3_5", attn), batch_of("qwen3_5")
    real, order = batch["attention_mask"].bool(), torch.arange(batch["input_ids"].shape[1])
    stages = [(1, real & (order % 2 > 0)), (3, real & (order % 6 > 2) & (order % 2 > 0))]
    with torch.no_grad():
        mine, theirs = (logits(model, batch, stages) for logits in (masked_logits, gathered_logits))
    assert first_difference(mine, theirs, stages[1][1]) < ROUNDING


def test_check_passes() -> None:
    assert check(fresh_model("qwen3_5"), HYBRIDS["qwen3_5"].processor(), show=False).ok


def test_mamba_without_positions_generates_as_the_plain_model_does_on_gathered_tokens() -> None:
    """Nemotron-H has no rotary embeddings: at K = 0 the reduced model is the plain one on a shorter prompt."""
    model = every_model.build("nemotron_h_omni")
    find_form(model)
    visual = image_id(model.config)
    inputs = survey_batch(model, [row_of(model, 4, "image", 6, seed=1)])
    options = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 5, "min_new_tokens": 5}
    options |= {"do_sample": False, "suppress_tokens": [visual], "pad_token_id": every_model.PAD}
    with attach(model, Random(keep=5, layer=0)) as attached:
        found = model.generate(**fresh(inputs), **options)
        keep = attached.last.mask[0]
    features = inputs["mm_encoder_outputs"]["image"].pooler_output[0][keep[inputs["input_ids"][0] == visual]]
    short = {name: inputs[name][:, keep] for name in ("input_ids", "attention_mask")}
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features])}
    plain = model.generate(**short, mm_encoder_outputs=encoded, **options)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(plain.logits))
