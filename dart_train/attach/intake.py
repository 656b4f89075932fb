"""What comes into a forward: taken apart, checked, and refused where an answer would be silently wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import NoGrid
from ..layout import Batch, Per
from .anatomy import Anatomy

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_values_images")


def has_images(inputs: Mapping[str, Any]) -> bool:
    """Asked of the host alone: decoding steps carry no pictures and cost no synchronisation."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    return any(inputs.get(name) is not None for name in PIXELS) or any(v is not None for v in encoded.values())


def two_dimensional(mask: Any) -> Tensor | None:
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    shape = f" of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else ""
    raise ValueError(
        f"attention_mask is a {type(mask).__name__}{shape}; expected None or [batch, length] with 0 at padding. "
        "Give the mask that the processor makes; the model builds the others itself."
    )


def check_inputs(inputs: Mapping[str, Any], labels: Tensor | None) -> Tensor:
    """The ids of a forward that brings pictures, or a refusal."""
    ids = inputs.get("input_ids")
    if ids is None:
        raise ValueError("pictures came in without input_ids: they are needed to find the visual tokens")
    check_cache(inputs.get("past_key_values"))
    packed = [name for name in ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx") if inputs.get(name) is not None]
    if packed or _restarts(inputs):
        raise NotImplementedError(
            f"packed sequences ({', '.join(packed) or 'position_ids that start again'}): tokens of one sample would "
            "choose for another. Turn packing / padding_free off, and pad with an attention_mask."
        )
    return ids  # type: ignore[no-any-return]


def check_cache(cache: Any) -> None:
    if cache is not None and getattr(cache, "is_compileable", False):
        raise NotImplementedError(
            f"{type(cache).__name__}: a static cache has one length for all layers, and layers >= K hold fewer "
            "tokens. Use the dynamic cache: generate(cache_implementation='dynamic')."
        )


def _restarts(inputs: Mapping[str, Any]) -> bool:
    """Without a mask, position ids that go back mark packed samples."""
    positions = inputs.get("position_ids")
    if positions is None or inputs.get("attention_mask") is not None or positions.ndim != 2:
        return False
    return bool((torch.diff(positions.cpu(), dim=1) < 0).any())


class Grids:
    """The tiles of each pool's images. Asked only by methods that look at the grid, or budget by image."""

    def __init__(self, parts: Anatomy, inputs: Mapping[str, Any], rows: int | None) -> None:
        """rows: the samples of `generate`'s inputs; beams repeat each of them."""
        self.parts, self.inputs, self.rows = parts, inputs, rows

    def of(self, batch: Batch) -> list[list[list[tuple[int, int]]]]:
        """Per row of the batch, per image, its tiles."""
        repeat = 1 if self.rows is None else batch.shape[0] // self.rows
        runs = [images for images in batch.images[::repeat]]
        lengths = [stop - start for row in runs for start, stop in row]
        config = self.parts.top.config
        tiles = self.parts.family.tiles(config, self.inputs, lengths)
        rows = deal(tiles, [sum(stop - start for start, stop in row) for row in runs])
        return [row for row in rows for _ in range(repeat)]

    def image_sizes(self, batch: Batch) -> list[int] | None:
        """Tokens of each image in batch order; None where only runs are known."""
        try:
            rows = self.of(batch)
        except NoGrid:
            return None
        return [sum(r * c for r, c in image) for row in rows for image in row]


def deal(tiles: Sequence[list[tuple[int, int]]], totals: Sequence[int]) -> list[list[list[tuple[int, int]]]]:
    """The images of a batch to its rows, by the visual tokens that each row has."""
    waiting, rows = list(tiles), []
    for total in totals:
        row: list[list[tuple[int, int]]] = []
        while sum(r * c for image in row for r, c in image) < total and waiting:
            row.append(waiting.pop(0))
        found = sum(r * c for image in row for r, c in image)
        if found != total:
            raise NoGrid(f"a sample has {total} visual tokens, but the grids of its images make {found}")
        rows.append(row)
    return rows


def pool_shapes(
    grids: list[list[list[tuple[int, int]]]], batch: Batch, per: Per
) -> list[list[tuple[int, int]]]:
    """Tiles of each pool, in the order of the pool's tokens."""
    shapes = []
    queues = [[tile for image in row for tile in image] for row in grids]
    for pool in batch.pools(per):
        taken, size = [], 0
        while size < pool.size:
            taken.append(queues[pool.row].pop(0))
            size += taken[-1][0] * taken[-1][1]
        if size != pool.size:
            raise NoGrid(f"a pool of {pool.size} visual tokens does not end with a tile of its image")
        shapes.append(taken)
    return shapes
