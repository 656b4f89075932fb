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
from .intake import check_inputs, check_positions, has_images, on_host, telling_positions, two_dimensional
from .memory import Memory
from .transformers_compat import cache_of

if TYPE_CHECKING:
    from .engine import Engine


def take_off(engine: Engine, inputs: Mapping[str, Any], labels: Tensor | None) -> Flight | None:
    """A prefill or training step where pictures come in; a decoding step where a cache remembers one; or
    None, and the forward is the plain one."""
    cache = cache_of(inputs)
    past = int(cache.get_seq_length()) if cache is not None else 0
    remembered = Memory.of(cache) if past else None
    if not has_images(inputs):
        return None if remembered is None else Flight(two_dimensional(inputs.get("attention_mask")), remembered)
    ids, mask = check_inputs(inputs), two_dimensional(inputs.get("attention_mask"))
    if past and engine.parts.family.bidirectional_images:
        raise NotImplementedError("a picture behind a filled cache, in a model whose pictures look both ways")
    flight = Flight(mask, remembered, past, labels=labels)
    batch = {"ids": ids, "mask": None if mask is None else mask[:, past:], "labels": labels}
    _lay_out(engine, flight, _known(engine, inputs, batch), past, ids)
    return flight if flight.pools is not None else None


def _known(engine: Engine, inputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """What the choice needs on the host: what was told ahead, and the rest in one transfer. In generation the inputs
    of `generate` are asked first: beams repeat those of the forward."""
    told, given = engine.expected, {**inputs, **engine.generating}
    reads = engine.parts.family.reads if _asks_for_images(engine) else ()
    wanted = {"positions": telling_positions(inputs), **({} if told else batch)}
    wanted |= {name: given.get(name) for name in reads if name not in (told or {})}
    return {**on_host({name: x for name, x in wanted.items() if x is not None}), **(told or {})}


def _asks_for_images(engine: Engine) -> bool:
    return _needs_grid(engine) or engine.reducers[0].per == "image"


def _needs_grid(engine: Engine) -> bool:
    return any("grid" in reducer.required() for reducer in engine.reducers)


def _batch(engine: Engine, known: Mapping[str, Any], past: int, shape: torch.Size) -> Batch:
    check_positions(known.get("positions"))
    told, engine.expected = engine.expected is not None, None
    if told and known["ids"].shape != shape:
        raise ValueError(f"expect() was told of a batch {tuple(known['ids'].shape)}, but {tuple(shape)} came in")
    prompt = None if engine.prompt is None or told else engine.prompt[1] - past
    return Batch.of(known["ids"], engine.parts.visual_ids, known.get("mask"), known.get("labels"), prompt)


def _lay_out(engine: Engine, flight: Flight, known: Mapping[str, Any], past: int, ids: Tensor) -> None:
    device, per = ids.device, engine.reducers[0].per
    flight.batch = batch = _batch(engine, known, past, ids.shape)
    if _asks_for_images(engine):
        grids = Grids(engine.parts, known, None if engine.prompt is None else engine.prompt[0])
        sizes = grids.image_sizes(batch)
        flight.batch = batch = batch if sizes is None else batch.with_images(sizes)
        if _needs_grid(engine):
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
