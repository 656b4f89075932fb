"""Before a forward: what comes in, which step it is, and where its visual tokens are.

`plan_batch` decides from the inputs alone. It reads what it needs of them on the host in one transfer, and refuses
inputs for which a reduction would be silently wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.image_grids import ImageGrids, group_tiles
from ..models.structure import ModelParts
from ..reduction import KeepAll, Reducer
from ..reduction.batch_layout import IGNORED, BatchLayout, to_cpu_in_one_copy
from ..reduction.packed_rows import PackedRows
from ..reduction.token_groups import TokenGroups, upload
from .answers import INPUTS, AnswerLocator, CallInputs
from .cache_state import CacheState
from .transformers_compat import cache_of, check_static_cache, has_two_way_attention, is_static

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images")
PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


@dataclass(frozen=True)
class GenerateCall:
    """What `generate` was called with: the prompt's rows and length, before beams repeat it, and all its inputs."""

    rows: int
    prompt_length: int
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class BatchPlan:
    """A prefill or training step where `layout` is set, else a decoding step after a reduced prefill.

    past: tokens in the cache before this forward.
    groups, real [B, L], visual [B, L]: on the device, of the full sequence.
    grid_shapes: per group, (rows, columns) of each tile; only where a method needs the grid.
    two_way_images: the tokens of an image may see each other in both directions.
    static: the cache's layers have a fixed size.
    packed: the rows that the sequence consists of; `layout` then has them padded on the right, while groups, real,
        visual and labels are [1, T]. None: padded.
    """

    attention_mask: Tensor | None  # the full-length 2-D mask, cached tokens included
    cache_state: CacheState | None = None
    past: int = 0
    layout: BatchLayout | None = None
    groups: TokenGroups | None = None
    real: Tensor | None = None
    visual: Tensor | None = None
    grid_shapes: Sequence[Sequence[tuple[int, int]]] | None = None
    labels: Tensor | None = None
    two_way_images: bool = False
    static: bool = False
    packed: PackedRows | None = None

    @property
    def decoding(self) -> bool:
        return self.layout is None


def plan_batch(
    inputs: Mapping[str, Any],
    labels: Tensor | None,
    parts: ModelParts,
    reducers: Sequence[Reducer],
    generate: GenerateCall | None = None,
    prefetched: Mapping[str, Any] | None = None,
    call: CallInputs | None = None,
    locator: AnswerLocator | None = None,
    visual: Tensor | None = None,
    packed: PackedRows | None = None,
) -> BatchPlan | None:
    """The plan of one forward, or None where it runs as the plain model.

    inputs: what the inner model is called with; labels: what the outer model was called with.
    generate: the call of `generate` that this forward belongs to. prefetched: ids, mask, labels and grids on the host.
    call: the other inputs of the outer model. locator: finds the answers; None: they are what is supervised.
    visual [B, L] bool: the visual tokens of a forward that is given embeddings without ids.
    packed: the rows that are laid end to end in this forward; None: it has a row for each sample.
    """
    cache = cache_of(inputs)
    past = int(cache.get_seq_length()) if cache is not None else 0
    cache_state = CacheState.of(cache) if past else None
    if not has_images(inputs) and visual is None:
        mask = None if cache_state is None else require_2d_mask(inputs.get("attention_mask"))
        return None if cache_state is None else BatchPlan(mask, cache_state, past, static=is_static(cache))
    mask = require_2d_mask(inputs.get("attention_mask"))
    unknown = inputs.get("input_ids") is None and visual is None and not (prefetched and "ids" in prefetched)
    if unknown and all(isinstance(reducer, KeepAll) for reducer in reducers):
        return None if cache_state is None else BatchPlan(mask, cache_state, past, static=is_static(cache))
    ids = _checked_ids(inputs, parts, visual, prefetched, generate)
    per, grid = reducers[0].per, any("grid" in reducer.required_inputs() for reducer in reducers)
    by_image = grid or per == "image"
    if by_image and inputs.get("input_ids") is None and not prefetched:
        raise ValueError(
            "a method that uses the image's grid, or has a budget for each image, needs the ids of the text around the "
            "images: " + _IDS_REMEDY
        )

    call = CallInputs(labels) if call is None else call
    if packed is not None:
        call = replace(call, logits_to_keep=0)  # the last columns are of the last row alone
    batch = {"ids": ids, "mask": None if mask is None or packed is not None else mask[:, past:], "labels": labels}
    if not prefetched or not any(prefetched.get(name) is not None for name in ("labels", *INPUTS)):
        batch |= {name: getattr(call, name) for name in INPUTS}
    host = _read_on_host(inputs, batch, parts.family.reads if by_image else (), generate, prefetched)
    if packed is None:
        check_positions(host.get("positions"))
    if prefetched and host["ids"].shape != ids.shape:
        raise ValueError(
            f"prefetch_batch() was given a batch of shape {tuple(host['ids'].shape)}, but {tuple(ids.shape)} came in: "
            "call it with the batch of the next forward"
        )
    if packed is not None:
        host = _unpack(host, packed)
    prompt = None if generate is None or prefetched else generate.prompt_length - past
    answers = None
    if locator is not None and prompt is None:
        answers = locator.locate(host, call, bool(prefetched), functools.partial(_is_training, parts.top))
    layout = BatchLayout.of(host["ids"], parts.visual_ids, host.get("mask"), host.get("labels"), prompt, answers)
    shapes = None
    if by_image:
        grids = ImageGrids(parts, host, None if generate is None else generate.rows)
        sizes = grids.image_sizes(layout)
        layout = layout if sizes is None else layout.with_images(sizes)
        shapes = group_tiles(grids.of(layout), layout, per) if grid else None
    groups = TokenGroups.of(layout, per, packed)
    if groups is None:
        return None
    real, visual = layout.real, layout.visual
    if packed is not None:
        real, visual = packed.pack(real), packed.pack(visual)
    real, visual = upload(real, ids.device), upload(visual, ids.device)
    kind: Any = type(parts.inner)
    two_way = has_two_way_attention(kind)
    if past and two_way and is_static(cache):
        raise NotImplementedError(
            f"{type(cache).__name__}: an image comes after a filled static cache, in a model whose images attend in "
            "both directions. Use the dynamic cache."
        )
    on_device = groups.to(ids.device)
    return BatchPlan(
        mask, cache_state, past, layout, on_device, real, visual, shapes, labels, two_way, is_static(cache), packed
    )


def _unpack(host: Mapping[str, Any], packed: PackedRows) -> dict[str, Any]:
    """What is [1, T] on the host as [B, L], padded on the right."""
    found = dict(host)
    for name in ("ids", "labels", "answer_mask"):
        if found.get(name) is not None:
            found[name] = packed.unpack(found[name], IGNORED if name == "labels" else 0)
    return {**found, "mask": packed.real()}


def _read_on_host(
    inputs: Mapping[str, Any],
    batch: Mapping[str, Any],
    grid_inputs: Sequence[str],
    generate: GenerateCall | None,
    prefetched: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the selection needs on the host: what was prefetched, and the rest in one transfer. In generation, grids
    are those that `generate` was called with: beams repeat those of the forward."""
    given = {**inputs, **(generate.inputs if generate is not None else {})}
    own = {name: batch.get(name) for name in INPUTS} if prefetched else batch
    wanted = {"positions": positions_for_packing_check(inputs), **own}
    wanted |= {name: given.get(name) for name in grid_inputs if name not in (prefetched or {})}
    there = {name: x for name, x in (prefetched or {}).items() if x is not None}
    return {**to_cpu_in_one_copy({name: x for name, x in wanted.items() if x is not None}), **there}


def _is_training(model: Any) -> bool:
    """By its mode, or because this forward will be differentiated."""
    differentiated = torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters())
    return bool(model.training) or differentiated


def has_images(inputs: Mapping[str, Any]) -> bool:
    """Decided on the host: decoding steps carry no images and cost no synchronisation."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    return any(inputs.get(name) is not None for name in PIXELS) or any(v is not None for v in encoded.values())


def require_2d_mask(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    shape = f" of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else ""
    raise ValueError(
        f"attention_mask is a {type(mask).__name__}{shape}; expected None or [batch, length] with 0 at padding. "
        "Give the mask that the processor makes; the model builds the others itself."
    )


_IDS_REMEDY = (
    "call attached.prefetch_batch(input_ids=...) before this forward, with the ids that the embeddings were made of"
)


def _checked_ids(
    inputs: Mapping[str, Any],
    parts: ModelParts,
    visual: Tensor | None,
    prefetched: Mapping[str, Any] | None,
    generate: GenerateCall | None,
) -> Tensor:
    """The ids of a forward with images; made of `visual`, or those that were prefetched, where it has embeddings."""
    ids: Tensor | None = inputs.get("input_ids")
    if ids is None:
        embeds: Tensor | None = inputs.get("inputs_embeds")
        if prefetched and "ids" in prefetched and embeds is not None:
            ids = prefetched["ids"].to(embeds.device)
        elif visual is not None and embeds is not None:
            ids = _ids_from_visual(visual, embeds, parts, generate)
        else:
            raise ValueError(
                "images came in without input_ids: they are needed to find the visual tokens. Before this forward "
                "(or generate) call attached.expect(visual=mask), [batch, length] bool, True at visual tokens; or "
                + _IDS_REMEDY
            )
    check_static_cache(cache_of(inputs), str(parts.text_config._attn_implementation))
    if marks := [name for name in PACKING if inputs.get(name) is not None]:
        raise _packed_sequences(", ".join(marks))
    return ids


def _ids_from_visual(visual: Tensor, embeds: Tensor, parts: ModelParts, generate: GenerateCall | None) -> Tensor:
    """[B, L] with the same id at all text. Beams repeat the rows that `generate` was called with."""
    repeats = embeds.shape[0] // visual.shape[0] if generate is not None and visual.shape[0] else 1
    visual = visual.to(embeds.device).bool().repeat_interleave(repeats, 0)
    if visual.shape != embeds.shape[:2]:
        raise ValueError(
            f"expect(visual=...) was given a mask of shape {tuple(visual.shape)}, but embeddings of "
            f"{tuple(embeds.shape[:2])} tokens came in: give the mask of the next forward, or of the prompt of generate"
        )
    text = next(number for number in range(len(parts.visual_ids) + 1) if number not in parts.visual_ids)
    return torch.where(visual, parts.visual_ids[0], text)


def _packed_sequences(by: str) -> NotImplementedError:
    return NotImplementedError(
        f"packed sequences ({by}): tokens of one sample would influence another. Turn packing / padding_free off, "
        "and pad with an attention_mask."
    )


def positions_for_packing_check(inputs: Mapping[str, Any]) -> Tensor | None:
    """Position ids that may mark packed samples. With a mask or a cache, samples are not packed."""
    positions: Tensor | None = inputs.get("position_ids")
    not_packed = inputs.get("attention_mask") is not None or cache_of(inputs) is not None
    return None if positions is None or not_packed or positions.ndim != 2 else positions


def check_positions(positions: Tensor | None) -> None:
    """On the host: position ids that decrease mark packed samples."""
    if positions is not None and bool((torch.diff(positions, dim=1) < 0).any()):
        raise _packed_sequences("position_ids that start again")


def position_ids_from_mask(plan: BatchPlan | None, inputs: Mapping[str, Any], parts: ModelParts) -> dict[str, Tensor]:
    """Left padding without position ids would move the rotary keys, and so the pivots: count from the mask. Later
    forwards on the same cache continue from there."""
    if plan is None or parts.own_positions or inputs.get("position_ids") is not None:
        return {}
    if plan.past:
        if plan.cache_state is None or not plan.cache_state.positions_from_mask or plan.attention_mask is None:
            return {}
        return {"position_ids": _count(plan.attention_mask)[:, plan.past :]}
    if plan.layout is None or not plan.layout.left_padded():
        return {}
    assert plan.real is not None
    return {"position_ids": _count(plan.real)}


def compact_position_ids(plan: BatchPlan | None, inputs: Mapping[str, Any], counted: Mapping[str, Tensor]) -> Any:
    """With compact positions, a forward after a reduced prefill continues from the number of tokens that were kept.
    counted: position ids that were made for this forward."""
    state = None if plan is None else plan.cache_state
    if plan is None or state is None or not plan.past:
        return counted
    new = inputs.get("inputs_embeds")
    new = inputs["input_ids"] if new is None else new
    positions = counted.get("position_ids", inputs.get("position_ids"))
    if positions is None:
        positions = torch.arange(plan.past, plan.past + new.shape[1], device=new.device)[None]
    mask, kept = plan.attention_mask, state.valid[0].sum(1, keepdim=True)
    before = state.length if mask is None else mask[:, : state.length].sum(1, keepdim=True)
    return {"position_ids": positions - (before - kept)}


def _count(mask: Tensor) -> Tensor:
    """[B, L] -> [B, L]: the position of each real token; 0 at padding before the first one."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def last_state_alone(plan: BatchPlan | None, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Layers that share earlier keys run on the last `logits_to_keep` states alone (Gemma 4). The last slot of a short
    row is its last token; with padding there, or for more of them, these layers run on all kept tokens."""
    wanted = inputs.get("logits_to_keep")
    if plan is None or plan.layout is None or not isinstance(wanted, int):
        return {}
    return {} if wanted <= 1 and bool(plan.layout.real[:, -1].all()) else {"logits_to_keep": 0}
