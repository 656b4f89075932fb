"""Molmo 2: the image as an overview, then once more with more pixels, cut into overlapping crops for the encoder.

Tokens of the large grid pool 2 x 2 patches of the crops put together; where their number is odd, a token at the edge
shows fewer of them. In the prompt a column token may end each row of visual tokens, so that a row is a run of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..transformers_compat import molmo2_grids
from .family import Family, Inputs, Rows, register, require_input
from .geometry import Box, ImageInfo, Interval, Tile, TokenGrid, patch_area
from .resizer import ResizedImage, Resizer


def overview_and_crops(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    grids = require_input(inputs, "image_grids")
    return [[(int(a), int(b)), (int(c), int(d))] for a, b, c, d in grids]


def pooled_geometry(info: ImageInfo) -> list[TokenGrid]:
    width, height = info.size
    processor = info.image_processor
    _, (patch_rows, patch_columns), _ = molmo2_grids(processor, height, width)
    side = int(processor.size["height"]) // int(processor.patch_size)
    small = patch_area(info.area, info.config)
    return [
        _pooled(small, (side, side), info.tiles[0], processor.pooling_size, "overview"),
        _pooled(info.area, (patch_rows, patch_columns), info.tiles[1], processor.pooling_size, "tiles"),
    ]


def _pooled(area: Box, patches: Tile, tile: Tile, pooling: Sequence[int], view: str) -> TokenGrid:
    rows = pooled_intervals(area.y_range, patches[0], tile[0], int(pooling[0]))
    return TokenGrid(view, pooled_intervals(area.x_range, patches[1], tile[1], int(pooling[1])), rows)


def pooled_intervals(interval: Interval, patches: int, tokens: int, pooling: int) -> list[Interval]:
    """Of tokens that show `pooling` patches each; the first and last ones fewer, where patches were padded."""
    start, patch, before = interval[0], (interval[1] - interval[0]) / patches, (tokens * pooling - patches) // 2
    edges = [min(max(i * pooling - before, 0), patches) for i in range(tokens + 1)]
    return [(start + first * patch, start + last * patch) for first, last in itertools.pairwise(edges)]


class OverlappingCropResizer(Resizer):
    """The overview, and a grid for one of several canvases; the smallest canvas is the limit."""

    def full(self, height: int, width: int) -> ResizedImage:
        return ResizedImage(height, width, molmo2_grids(self.image_processor, height, width)[0])

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        limit = int(self.image_processor.max_crops)
        tilings = [(r, c) for r in range(1, limit + 1) for c in range(1, limit // r + 1)]
        sizes = [self._filling(height, width, *tiling) for tiling in tilings]
        within = [size for size in sizes if size.tokens <= tokens]
        return max(within, key=lambda s: s.tokens) if within else min(sizes, key=lambda s: s.tokens)

    def _filling(self, height: int, width: int, rows: int, columns: int) -> ResizedImage:
        """The image with its aspect ratio, as large as a canvas of so many crops has room for."""
        patch, margin = int(self.image_processor.patch_size), sum(self.image_processor.overlap_margins)
        window = int(self.image_processor.size["height"]) // patch - margin
        room = (rows * window + margin) * patch, (columns * window + margin) * patch
        scale = min(room[0] / height, room[1] / width)
        return self.full(max(1, int(height * scale)), max(1, int(width * scale)))


MOLMO2 = register(
    Family(
        name="Molmo 2",
        model_types=("molmo2",),
        tiles=overview_and_crops,
        reads=("image_grids",),
        geometry=pooled_geometry,
        processors=("Molmo2Processor",),
        resizer=OverlappingCropResizer,
        projectors=frozenset({"multi_modal_projector"}),
        bidirectional_images=True,
    )
)
