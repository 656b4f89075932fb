"""The stage in the vision tower: nothing dropped is the plain tower; dropped units neither see nor are seen."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.vision_utils import (
    get_vision_attention_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from dart_train import DART, KeepAll, TowerDART, attach
from dart_train.models.structure import find_parts
from dart_train.models.towers import find_tower
from dart_train.reduction.tower import Representatives, choose_by_states, match_pixels, tower_from_config
from tests.laws.cases import ROUNDING, batch_of, model_of, new_tokens
from tests.zoo import FAMILIES, conversation, encode, make_batch, make_video_batch

NAMES = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3")
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
every_family = pytest.mark.parametrize("name", NAMES)
HALF = TowerDART(layer=1, keep=0.5)


def image_inputs(model: Any, batch: Any) -> dict[str, Any]:
    return {key: batch[key] for key in batch.keys() & inspect.signature(model.get_image_features).parameters}


def levels_of(model: Any, batch: Any) -> list[list[Tensor]]:
    """Features of each image, and those that Qwen3-VL takes from blocks in between."""
    with torch.no_grad():
        output = model.get_image_features(**image_inputs(model, batch))
    return [list(output.pooler_output), *(list(x) for x in getattr(output, "deepstack_features", None) or ())]


def features_of(model: Any, batch: Any) -> list[Tensor]:
    return [features for level in levels_of(model, batch) for features in level]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def hidden_from_others(model: Any, chosen: list[Representatives | None], layer: int) -> Iterator[None]:
    """The full-length tower in which, from block `layer` on, dropped units are not seen: their keys are masked out. An
    independent reference: attention is computed here, row by row, from the block's own projections."""
    tower = find_tower(find_parts(model))
    handles, of = [], iter(chosen)
    state: dict[str, Any] = {}

    def start(*_: Any) -> None:
        state["chosen"] = next(of)

    handles.append(tower.tower.register_forward_pre_hook(start))
    for number, block in enumerate(tower.blocks):
        if number < layer or state.get("chosen", True) is None:
            continue
        attention: Any = getattr(block, tower.attention or "attn")

        def mask(module: Any, args: Any, kwargs: Any) -> Any:
            kept = state["chosen"].kept
            if tower.packed:
                raise AssertionError("packed towers are masked below")
            hidden = args[0] if args else kwargs["hidden_states"]
            size = len(state["chosen"].of) // len(hidden)
            prefix = hidden.shape[1] - size
            valid = torch.zeros(len(hidden) * size, dtype=torch.bool)
            valid[kept] = True
            valid = torch.cat([torch.ones(len(hidden), prefix, dtype=torch.bool), valid.view(len(hidden), size)], 1)
            return args, {**kwargs, "attention_mask": valid[:, None, None]}

        if not tower.packed:
            handles.append(attention.register_forward_pre_hook(mask, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@every_family
def test_tower_that_drops_nothing_is_the_plain_tower_bit_for_bit(name: str) -> None:
    model, batch = model_of(name), {key: value.clone() for key, value in batch_of(name).items()}
    batch["pixel_values"] = torch.randn(batch["pixel_values"].shape)  # no two units are equal
    plain = features_of(model, batch)
    with attach(model, KeepAll()):
        logits = model(**batch).logits
    with attach(model, TowerDART(keep=1.0)):
        assert same(features_of(model, batch), plain) and torch.equal(model(**batch).logits, logits)
    with attach(model, TowerDART(tolerance=0.0)) as attached:
        assert same(features_of(model, batch), plain) and torch.equal(model(**batch).logits, logits)
        assert attached.tower_units == (None,)


@every_family
def test_half_of_the_units_run_and_the_others_take_their_features(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    tower = find_tower(find_parts(model))
    lengths: list[int] = []
    handle = tower.blocks[-1].register_forward_hook(
        lambda module, args, output: lengths.append((output if isinstance(output, Tensor) else output[0]).shape[-2])
    )
    try:
        with attach(model, HALF) as attached:
            logits = model(**batch).logits
            units = attached.tower_units
    finally:
        handle.remove()
    full = sum(len(u.of) for u in units if u is not None)
    kept = sum(len(u.kept) for u in units if u is not None)
    assert kept == sum(sum(u.counts) for u in units if u is not None) and abs(kept - full / 2) <= full * 0.1
    assert logits.isfinite().all() and not torch.equal(logits, model(**batch).logits)
    if name in PACKED:
        assert lengths == [kept * tower.unit]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in PACKED])
def test_dropped_patches_are_the_same_as_masked_ones(name: str) -> None:
    """Representatives have the features of a full-length tower in which dropped patches are masked out."""
    model, batch = model_of(name), batch_of(name)
    tower = find_tower(find_parts(model))
    outputs: list[Any] = []
    keep = lambda module, args, output: outputs.append(output)  # noqa: E731
    with attach(model, HALF) as attached:
        handle = tower.tower.register_forward_hook(keep)
        model.model(**batch)
        units = [u for u in attached.tower_units if u is not None]
        handle.remove()
    with hidden_from_others(model, list(units), HALF.layer):
        handle = tower.tower.register_forward_hook(keep)
        model.model(**batch)
        handle.remove()
    for chosen, short, masked in zip(units, outputs[: len(units)], outputs[len(units) :], strict=True):
        a, b = short.last_hidden_state, masked.last_hidden_state
        size = len(chosen.of) // len(a)
        prefix = a.shape[1] - size
        a, b = a[:, prefix:].flatten(0, 1), b[:, prefix:].flatten(0, 1)
        torch.testing.assert_close(a[chosen.kept], b[chosen.kept], rtol=1e-4, atol=1e-5)
        assert torch.equal(a, a[chosen.of])


def slow_packed_tower(model: Any, name: str, batch: Any, chosen: Representatives, layer: int) -> Tensor:
    """A packed tower written once more: from block `layer` on only kept patches, one attention after another."""
    tower, pixels, grid = find_tower(find_parts(model)).tower, batch["pixel_values"], batch["image_grid_thw"]
    unit = tower.spatial_merge_size**2
    number = len(pixels)
    segment = torch.zeros(number, dtype=torch.long)
    for bound in get_vision_attention_seqlens(grid, tower.config, kwargs={})[0][1:-1].tolist():
        segment[bound:] += 1
    window = segment
    if name == "qwen2_5_vl":
        order, bounds = get_vision_window_index(
            grid,
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
            kwargs={},
        )
        at = torch.zeros(number, dtype=torch.long)
        for bound in bounds[1:-1].tolist():
            at[bound:] += 1
        window = torch.empty_like(at)
        places = (order[:, None] * unit + torch.arange(unit)).flatten()
        window[places] = at
    hidden = tower.patch_embed(pixels)
    if hasattr(tower, "pos_embed"):
        index, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=tower.spatial_merge_size,
            kwargs={},
        )
        hidden = hidden + (tower.pos_embed(index) * weights[:, :, None]).sum(1)
    cos, sin = tower.rotary_pos_emb(hidden, get_vision_position_ids(grid, tower.spatial_merge_size, kwargs={}))
    kept = torch.zeros(number // unit, dtype=torch.bool)
    kept[chosen.kept] = True
    kept = kept.repeat_interleave(unit)

    def rotate(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]

    for block_number, block in enumerate(tower.blocks):
        full = name != "qwen2_5_vl" or block_number in tower.fullatt_block_indexes
        owner = segment if full else window
        seen = owner[:, None] == owner[None]
        if block_number >= layer:
            seen = seen & kept[None]
        q, k, v = block.attn.qkv(block.norm1(hidden)).reshape(number, 3, block.attn.num_heads, -1).unbind(1)
        q, k = rotate(q), rotate(k)
        weight = (q.transpose(0, 1) @ k.permute(1, 2, 0) * block.attn.scaling).masked_fill(~seen, -1e9).softmax(-1)
        hidden = hidden + block.attn.proj((weight @ v.transpose(0, 1)).transpose(0, 1).reshape(number, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return tower.merger(hidden)[chosen.of]


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_packed_tower_equals_the_slow_reference(name: str, kernel: str, layer: int) -> None:
    model, batch = model_of(name, kernel), batch_of(name)
    with attach(model, TowerDART(layer=layer, keep=0.5)) as attached:
        model(**batch)
        (chosen,) = attached.tower_units
        ours = torch.cat(levels_of(model, batch)[0])
    assert chosen is not None
    wanted = slow_packed_tower(model, name, batch, chosen, layer)
    torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-5)


@every_family
@torch.no_grad()
def test_exact_duplicates_leave_and_images_do_not_influence_each_other(name: str) -> None:
    model, batch = model_of(name), {k: v.clone() for k, v in batch_of(name).items()}
    pixels = batch["pixel_values"]
    flat = pixels.view(-1, *pixels.shape[-3:]) if name not in PACKED else pixels
    if name in PACKED:
        flat[: len(flat) // 4] = flat[0]  # the first image in part blank
    else:
        flat[0, :, : flat.shape[2] // 2] = 0.25
    plain = features_of(model, batch)
    with attach(model, TowerDART()) as attached:
        reduced = features_of(model, batch)
        model(**batch)
        units = [u for u in attached.tower_units if u is not None]
    assert units and all(len(u.kept) < len(u.of) for u in units)
    changed = [not torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, reduced, strict=True)]
    assert changed[0]
    if name in PACKED:
        later = changed[2 : len(batch["image_grid_thw"])]  # images without duplicates, to the last digit but rounding
        assert not any(later)


def test_equal_pixels_are_found_in_the_frame_and_at_the_same_place_of_the_frame_before() -> None:
    a, b, c, d = torch.randn(4, 12).unbind()
    frames = torch.stack([a, b, a, c, a, d, a, c])  # two frames of four units
    chosen = match_pixels(frames, [4, 4], 0.0, [False, True])
    assert chosen.of.tolist() == [0, 1, 0, 3, 0, 5, 0, 3] and chosen.counts == (3, 1)
    images = match_pixels(frames, [4, 4], 0.0)
    assert images.of.tolist() == [0, 1, 0, 3, 4, 5, 4, 7]


def test_tolerance_joins_what_is_near_and_no_tolerance_only_what_is_equal() -> None:
    base = torch.randn(1, 30)
    table = torch.cat([base, base + 0.01, base + 0.5, base + 0.505])
    assert match_pixels(table, [4], 0.0).of.tolist() == [0, 1, 2, 3]
    assert match_pixels(table, [4], 0.02).of.tolist() == [0, 0, 2, 2]
    assert match_pixels(table, [4], 1.0).of.tolist() == [0, 0, 0, 0]


def test_tolerance_equals_a_loop_over_units() -> None:
    torch.manual_seed(0)
    table = torch.randn(6, 8).repeat_interleave(9, 0) + 0.1 * torch.randn(54, 8)
    kept: list[int] = []
    wanted = []
    for number, row in enumerate(table):
        near = [k for k in kept if (row - table[k]).square().mean().sqrt() <= 0.15]
        wanted.append(near[0] if near else number)
        kept += [] if near else [number]
    assert match_pixels(table, [54], 0.15).of.tolist() == wanted and len(kept) > 6


def test_choice_by_states_equals_a_loop() -> None:
    torch.manual_seed(0)
    states, sizes = torch.randn(31, 16), [12, 19]
    chosen = choose_by_states(states, sizes, 0.5, pivots=2)
    start = 0
    for size, count in zip(sizes, chosen.counts, strict=True):
        group = states[start : start + size]
        pivots = group.abs().sum(1).argsort(descending=True)[:2].tolist()
        taken = list(pivots)
        left = [(count - 2 + 1) // 2, (count - 2) // 2]
        for pivot, quota in zip(pivots, left, strict=True):
            order = F.cosine_similarity(group, group[pivot][None]).argsort().tolist()
            taken += [unit for unit in order if unit not in taken][:quota]
        assert sorted(taken) == [k - start for k in chosen.kept.tolist() if start <= k < start + size]
        for unit in range(size):
            of = int(chosen.of[start + unit]) - start
            nearest = max(sorted(taken), key=lambda k: float(F.cosine_similarity(group[unit], group[k], dim=0)))
            assert of == (unit if unit in taken else nearest)
        start += size


@every_family
def test_batch_in_the_tower_equals_its_samples_one_by_one(name: str) -> None:
    rows = [conversation(1, "what is it?", None, seed=1)[0], conversation(1, "is it red?", None, seed=2)[0]]
    model = model_of(name)
    with attach(model, [HALF, DART(keep=8)]), torch.no_grad():
        together = levels_of(model, encode(name, rows))
        alone = [levels_of(model, encode(name, [row])) for row in rows]
    for level, features in enumerate(together):
        one_by_one = [x for row in alone for x in row[level]]
        for a, b in zip(features, one_by_one, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@every_family
def test_language_model_then_chooses_as_on_the_filled_features(name: str) -> None:
    """The stage in the tower is a change of features only: the reduction after it sees as many tokens as ever."""
    model, batch = model_of(name), batch_of(name)
    with attach(model, [HALF, DART(keep=8)]) as attached, torch.no_grad():
        logits = model(**batch).logits
        kept = attached.last.kept_visual  # type: ignore[union-attr]
        stored = model.get_image_features(**image_inputs(model, batch))
    inner = model.model
    vars(inner)["get_image_features"] = lambda *args, **kwargs: stored
    try:
        with attach(model, DART(keep=8)) as attached, torch.no_grad():
            again = model(**batch).logits
            assert attached.last is not None and torch.equal(attached.last.kept_visual, kept)
    finally:
        del vars(inner)["get_image_features"]
    torch.testing.assert_close(logits, again, rtol=ROUNDING, atol=1e-5)


@every_family
@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not_reentrant"])
def test_gradients_reach_the_tower_and_survive_checkpointing(name: str, checkpointing: bool | None) -> None:
    model = FAMILIES[name].model()
    batch = make_batch(name, (1, 1), labels=True)
    model.train()
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    with attach(model, [HALF, DART(keep=8)]):
        loss = model(**batch).loss
        loss.backward()
    tower = find_tower(find_parts(model))
    gradient = next(p.grad for n, p in tower.blocks[-2].named_parameters() if n.endswith("weight") and p.ndim == 2)
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0
    reference = FAMILIES[name].model()
    reference.train()
    with attach(reference, [HALF, DART(keep=8)]):
        wanted = reference(**batch).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)


@every_family
def test_removal_from_the_tower_leaves_no_trace(name: str) -> None:
    model, batch = FAMILIES[name].model(), batch_of(name)
    before = features_of(model, batch)
    traces = [
        (part, set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for part, module in model.named_modules()
    ]
    attach(model, [HALF, DART(keep=8)]).remove()
    assert traces == [
        (part, set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for part, module in model.named_modules()
    ]
    assert same(features_of(model, batch), before)


@every_family
def test_generation_with_a_reduced_tower_equals_its_recomputation(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    with attach(model, [HALF, DART(keep=8)]):
        assert torch.equal(new_tokens(model, batch), new_tokens(model, batch, use_cache=False))


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("name", [*PACKED, "llava_onevision"])
def test_video_frames_are_reduced_each(name: str, prefetched: bool) -> None:
    model, batch = model_of(name), make_video_batch(name)
    grids, stacked = batch.get("video_grid_thw"), batch["pixel_values_videos"]
    frames = stacked.shape[0] * stacked.shape[1] if grids is None else sum(int(t) for t, _, _ in grids)
    with attach(model, [HALF, DART(keep=8)]) as attached, torch.no_grad():
        if prefetched:
            attached.prefetch_batch(**batch)
        assert model(**batch).logits.isfinite().all()
        chosen = next(u for u in attached.tower_units if u is not None)
    assert len(chosen.counts) == frames


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("stage", [HALF, TowerDART()], ids=["keep", "tolerance"])
def test_prefetched_batch_gives_the_same_choice(name: str, stage: TowerDART) -> None:
    model, batch = model_of(name), {k: v.clone() for k, v in batch_of(name).items()}
    batch["pixel_values"][..., : batch["pixel_values"].shape[-1] // 2] = 0.5
    with attach(model, [stage, DART(keep=8)]) as attached, torch.no_grad():
        wanted = model(**batch).logits
        attached.prefetch_batch(**batch)
        assert torch.equal(model(**batch).logits, wanted)


def test_paused_reduction_runs_the_full_tower() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    plain = features_of(model, batch)
    with attach(model, [HALF, DART(keep=8)]) as attached, attached.paused():
        assert same(features_of(model, batch), plain)


def test_wrong_stages_in_the_tower_are_refused_with_all_reasons() -> None:
    with pytest.raises(ValueError, match="tolerance with layer=2"):
        TowerDART(layer=2, tolerance=0.1)
    with pytest.raises(ValueError, match=r"pivots=0.*keep=2"):
        TowerDART(keep=2, pivots=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one of them"):
        TowerDART(keep=0.5, tolerance=0.0)
    with pytest.raises(ValueError, match=r"unknown option 'ratio'"):
        tower_from_config({"ratio": 0.5})
    with pytest.raises(NotImplementedError, match="idefics3_vision"):
        attach(FAMILIES["idefics3"].model(), TowerDART())
    with pytest.raises(ValueError, match="the blocks of the tower"):
        attach(model_of("llava"), TowerDART(layer=99, keep=0.5))
    with pytest.raises(ValueError, match="before all other stages"):
        attach(model_of("llava"), [DART(keep=8), TowerDART()])


@pytest.mark.parametrize("stage", [TowerDART(), TowerDART(tolerance=0.5), TowerDART(layer=3, keep=0.5, pivots=2)])
def test_stage_is_its_own_configuration(stage: TowerDART) -> None:
    assert tower_from_config(stage.to_dict()) == stage
