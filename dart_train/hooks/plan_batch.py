"""Before a forward: what it brings, which step it is, where its visual tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.image_grids import ImageGrids, group_tiles
from ..reduction.batch_layout import BatchLayout, to_cpu_in_one_copy
from ..reduction.token_groups import TokenGroups, upload
from .forward_state import ForwardState, Memory
from .transformers_compat import cache_of

if TYPE_CHECKING:
    from .engine import Engine

# What comes into a forward: taken apart, checked, and refused where an answer would be silently wrong.

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images")


def has_images(inputs: Mapping[str, Any]) -> bool:
    """Asked of the host alone: decoding steps carry no pictures and cost no synchronisation."""
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


def check_inputs(inputs: Mapping[str, Any]) -> Tensor:
    """The ids of a forward that brings pictures, or a refusal."""
    ids: Tensor | None = inputs.get("input_ids")
    if ids is None:
        raise ValueError("pictures came in without input_ids: they are needed to find the visual tokens")
    check_cache(cache_of(inputs))
    if packed := [name for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if inputs.get(name) is not None]:
        raise packed_sequences(", ".join(packed))
    return ids


def packed_sequences(by: str) -> NotImplementedError:
    return NotImplementedError(
        f"packed sequences ({by}): tokens of one sample would choose for another. Turn packing / padding_free off, "
        "and pad with an attention_mask."
    )


def check_cache(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise NotImplementedError(
            f"{type(cache).__name__}: a static cache has one length for all layers, and layers >= K hold fewer "
            "tokens. Use the dynamic cache: generate(cache_implementation='dynamic')."
        )


def positions_for_packing_check(inputs: Mapping[str, Any]) -> Tensor | None:
    """Position ids that may tell of packed samples: nothing else tells them apart."""
    positions: Tensor | None = inputs.get("position_ids")
    told_apart = inputs.get("attention_mask") is not None or cache_of(inputs) is not None
    return None if positions is None or told_apart or positions.ndim != 2 else positions


def check_positions(positions: Tensor | None) -> None:
    """On the host: position ids that go back mark packed samples."""
    if positions is not None and bool((torch.diff(positions, dim=1) < 0).any()):
        raise packed_sequences("position_ids that start again")


def plan_batch(engine: Engine, inputs: Mapping[str, Any], labels: Tensor | None) -> ForwardState | None:
    """A prefill or training step where pictures come in; a decoding step where a cache remembers one; or
    None, and the forward is the plain one."""
    cache = cache_of(inputs)
    past = int(cache.get_seq_length()) if cache is not None else 0
    remembered = Memory.of(cache) if past else None
    if not has_images(inputs):
        return None if remembered is None else ForwardState(require_2d_mask(inputs.get("attention_mask")), remembered)
    ids, mask = check_inputs(inputs), require_2d_mask(inputs.get("attention_mask"))
    if past and engine.parts.family.bidirectional_images:
        raise NotImplementedError("a picture behind a filled cache, in a model whose pictures look both ways")
    flight = ForwardState(mask, remembered, past, labels=labels)
    batch = {"ids": ids, "mask": None if mask is None else mask[:, past:], "labels": labels}
    _lay_out(engine, flight, _known(engine, inputs, batch), past, ids)
    return flight if flight.pools is not None else None


def _known(engine: Engine, inputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the choice needs on the host: what was told ahead, and the rest in one transfer. In generation the inputs
    of `generate` are asked first: beams repeat those of the forward."""
    told, given = engine.expected, {**inputs, **engine.generating}
    reads = engine.parts.family.reads if _asks_for_images(engine) else ()
    wanted = {"positions": positions_for_packing_check(inputs), **({} if told else batch)}
    wanted |= {name: given.get(name) for name in reads if name not in (told or {})}
    return {**to_cpu_in_one_copy({name: x for name, x in wanted.items() if x is not None}), **(told or {})}


def _asks_for_images(engine: Engine) -> bool:
    return _needs_grid(engine) or engine.reducers[0].per == "image"


def _needs_grid(engine: Engine) -> bool:
    return any("grid" in reducer.required_inputs() for reducer in engine.reducers)


def _batch(engine: Engine, known: Mapping[str, Any], past: int, shape: torch.Size) -> BatchLayout:
    check_positions(known.get("positions"))
    told, engine.expected = engine.expected is not None, None
    if told and known["ids"].shape != shape:
        raise ValueError(f"expect() was told of a batch {tuple(known['ids'].shape)}, but {tuple(shape)} came in")
    prompt = None if engine.prompt is None or told else engine.prompt[1] - past
    return BatchLayout.of(known["ids"], engine.parts.visual_ids, known.get("mask"), known.get("labels"), prompt)


def _lay_out(engine: Engine, flight: ForwardState, known: Mapping[str, Any], past: int, ids: Tensor) -> None:
    device, per = ids.device, engine.reducers[0].per
    flight.batch = batch = _batch(engine, known, past, ids.shape)
    if _asks_for_images(engine):
        grids = ImageGrids(engine.parts, known, None if engine.prompt is None else engine.prompt[0])
        sizes = grids.image_sizes(batch)
        flight.batch = batch = batch if sizes is None else batch.with_images(sizes)
        if _needs_grid(engine):
            flight.grid_shapes = group_tiles(grids.of(batch), batch, per)
    pools = TokenGroups.of(batch, per)
    if pools is not None:
        flight.pools = pools.to(device)
        flight.real, flight.visual = upload(batch.real, device), upload(batch.visual, device)


def positions(engine: Engine, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Left padding without position ids would move the rotary keys, and so the pivots: count from the mask."""
    flight = engine.flight
    if flight is None or flight.batch is None or flight.past or engine.parts.family.own_positions:
        return {}
    if inputs.get("position_ids") is not None or not flight.batch.left_padded():
        return {}
    assert flight.real is not None
    return {"position_ids": (flight.real.long().cumsum(1) - 1).clamp_min(0)}
