"""InternVL: as many square tiles as suit the image's aspect ratio, row by row, then the image once more as an overview.

The tokens of an image are one run of the prompt.
"""

from __future__ import annotations

import math
from typing import Any

from ..transformers_compat import canvas_grid, count_image_tokens
from .family import Family, Inputs, Rows, UnknownGridError, register
from .geometry import Box, ImageInfo, Tile, TokenGrid, patch_area, split_evenly
from .resizer import GridResizer


def run_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """A run of visual tokens is one image: tiles of `image_seq_length` tokens each, one after the other."""
    side = math.isqrt(config.image_seq_length)
    runs = [stop - start for row in rows for start, stop in row.runs]
    return [[(side, side)] * (run // (side * side)) for run in runs]


def canvas_geometry(info: ImageInfo) -> list[TokenGrid]:
    if len(info.tiles) == 1:
        return [TokenGrid.over(patch_area(info.area, info.config), info.tiles[0], "image")]
    width, height = info.size
    return tiles_and_overview(info, *canvas_grid(info.image_processor, height, width))


def cut_into_tiles(area: Box, rows: int, columns: int) -> list[Box]:
    """Equal tiles, row by row."""
    return [
        Box(x_range[0], y_range[0], x_range[1], y_range[1])
        for y_range in split_evenly(area.y_range, rows)
        for x_range in split_evenly(area.x_range, columns)
    ]


def tiles_and_overview(info: ImageInfo, rows: int, columns: int, overview_first: bool = False) -> list[TokenGrid]:
    """The image cut into rows x columns equal tiles, and all of it after them, or before."""
    if rows * columns + 1 != len(info.tiles):
        raise UnknownGridError(
            f"an image of {info.size} gives {rows} x {columns} tiles and an overview, "
            f"but the prompt has {len(info.tiles)} tiles"
        )
    tiles, overview = [(box, "tiles") for box in cut_into_tiles(info.area, rows, columns)], (info.area, "overview")
    views = [overview, *tiles] if overview_first else [*tiles, overview]
    return [
        TokenGrid.over(patch_area(box, info.config), tile, view)
        for (box, view), tile in zip(views, info.tiles, strict=True)
    ]


class CanvasResizer(GridResizer):
    """A cell is a tile. As soon as there are two tiles, there is an overview."""

    @property
    def side(self) -> int:
        return int(self.image_processor.size["height"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """An image of exactly this many tiles is cut into just these."""
        _, encoder_inputs = count_image_tokens(self.processor, height, width)
        return (1, 1) if encoder_inputs == 1 else canvas_grid(self.image_processor, height, width)

    def tokens(self, cells: int) -> int:
        return int(self.processor.image_seq_length) * (cells + (cells > 1))


INTERNVL = register(
    Family(
        name="InternVL",
        model_types=("internvl",),
        tiles=run_tiles,
        geometry=canvas_geometry,
        no_video="each frame is an image of its own in the prompt; give the frames as images",
        processors=("InternVLProcessor",),
        resizer=CanvasResizer,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
