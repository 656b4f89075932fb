"""Before a forward: what it brings, which step it is, where its visual tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..layout import Batch
from ..pools import Pools, upload
from .flight import Flight
from .grids import Grids, pool_shapes
from .intake import check_inputs, has_images, two_dimensional
from .memory import Memory

if TYPE_CHECKING:
    from .engine import Engine


def take_off(engine: Engine, inputs: Mapping[str, Any], labels: Tensor | None) -> Flight | None:
    """A prefill or training step where pictures come in; a decoding step where a cache remembers one; or
    None, and the forward is the plain one."""
    cache = inputs.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    remembered = Memory.of(cache) if past else None
    if not has_images(inputs):
        return None if remembered is None else Flight(two_dimensional(inputs.get("attention_mask")), remembered)
    ids, mask = check_inputs(inputs), two_dimensional(inputs.get("attention_mask"))
    if past and engine.parts.family.bidirectional_images:
        raise NotImplementedError("a picture behind a filled cache, in a model whose pictures look both ways")
    flight = Flight(mask, remembered, past, labels=labels)
    flight.batch = _batch(engine, ids, None if mask is None else mask[:, past:], labels, past)
    _lay_out(engine, flight, inputs, ids.device)
    return flight if flight.pools is not None else None


def _batch(engine: Engine, ids: Tensor, mask: Tensor | None, labels: Tensor | None, past: int) -> Batch:
    expected, engine.expected = engine.expected, None
    if expected is None:
        prompt = None if engine.prompt is None else engine.prompt[1] - past
        return Batch.of(ids, engine.parts.visual_ids, mask, labels, prompt)
    if expected.shape != tuple(ids.shape):
        raise ValueError(f"expect() was told of a batch {expected.shape}, but {tuple(ids.shape)} came in")
    return expected


def _lay_out(engine: Engine, flight: Flight, inputs: Mapping[str, Any], device: torch.device) -> None:
    batch, per = flight.batch, engine.reducers[0].per
    assert batch is not None
    needs_grid = any("grid" in reducer.required() for reducer in engine.reducers)
    if needs_grid or per == "image":
        rows = None if engine.prompt is None else engine.prompt[0]
        given = {name: value for name, value in inputs.items() if value is not None}
        grids = Grids(engine.parts, {**engine.generating, **given}, rows)
        sizes = grids.image_sizes(batch)
        flight.batch = batch = batch if sizes is None else batch.with_images(sizes)
        if needs_grid:
            flight.grid_shapes = pool_shapes(grids.of(batch), batch, per)
    pools = Pools.of(batch, per)
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
