"""LFM2-VL: a small image at its own resolution; a large one as square tiles, row by row, then as an overview.

A token is `downsample_factor` squared patches. The processor passes the patches (rows, columns) of each tile. In the
prompt every tile is a run of its own, with the tile's place in text before it and a marker after the last one.
"""

from __future__ import annotations

from typing import Any

from ...reduction.budget import Keep
from ..transformers_compat import lfm2_layout
from .family import Family, Inputs, Rows, UnknownGridError, register, require_input
from .geometry import ImageInfo, Tile, TokenGrid
from .internvl import cut_into_tiles
from .markers import runs_up_to_end_marker
from .resizer import GridResizer, ResizedImage, fit_grid


def unshuffled_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    factor = int(config.downsample_factor)
    waiting = [
        (int(height) // factor, int(width) // factor) for height, width in require_input(inputs, "spatial_shapes")
    ]
    images = list[list[Tile]]()
    for runs in runs_up_to_end_marker(rows):
        images.append([])
        for start, stop in runs:
            tokens = stop - start
            while tokens > 0:  # one run has all tiles of an image where the processor writes no markers
                if not waiting:
                    raise UnknownGridError("spatial_shapes has fewer tiles than the prompt")
                images[-1].append(waiting.pop(0))
                tokens -= images[-1][-1][0] * images[-1][-1][1]
    return images


def tiled_if_large(info: ImageInfo) -> list[TokenGrid]:
    (width, height), tiles = info.size, info.tiles
    rows, columns, _ = lfm2_layout(info.image_processor, height, width)
    if rows * columns == 1:
        return [TokenGrid.over(info.area, tiles[0], "image")]
    boxes = [(box, "tiles") for box in cut_into_tiles(info.area, rows, columns)]
    boxes += [(info.area, "overview")] * (len(tiles) - len(boxes))
    return [TokenGrid.over(box, tile, view) for (box, view), tile in zip(boxes, tiles, strict=False)]


class UnshuffleResizer(GridResizer):
    """Without tiles: any number of rows and columns up to the largest small image; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.image_processor.encoder_patch_size * self.image_processor.downsample_factor)

    def full(self, height: int, width: int) -> ResizedImage:
        rows, columns, (new_height, new_width) = lfm2_layout(self.image_processor, height, width)
        tokens = (new_height // self.side) * (new_width // self.side)
        if rows * columns == 1:
            return ResizedImage(new_height, new_width, tokens)
        tile = (int(self.image_processor.tile_size) // self.side) ** 2
        overview = tokens if self.image_processor.use_thumbnail else 0
        return ResizedImage(height, width, tile * rows * columns + overview)

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        return self._resized(*fit_grid(height, width, min(tokens, int(self.image_processor.max_image_tokens))))

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"min_image_tokens": 1}


LFM2_VL = register(
    Family(
        name="LFM2-VL",
        model_types=("lfm2_vl",),
        tiles=unshuffled_tiles,
        reads=("spatial_shapes",),
        geometry=tiled_if_large,
        processors=("Lfm2VlProcessor",),
        resizer=UnshuffleResizer,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
