"""Llama 4: the image in the upper left corner of a canvas of square tiles, then once more as an overview.

In the prompt every tile is a run of visual tokens of its own, with a separator between the tiles and a marker after the
overview.
"""

from __future__ import annotations

from typing import Any

from ..transformers_compat import llama4_canvas
from .family import Family, Inputs, Rows, UnknownGridError, register
from .geometry import Box, ImageInfo, Tile, TokenGrid, patch_area
from .markers import square_tiles_to_end_marker
from .resizer import GridResizer


def separated_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    return square_tiles_to_end_marker(rows)


def corner_geometry(info: ImageInfo) -> list[TokenGrid]:
    (width, height), side = info.size, int(info.image_processor.size["height"])
    (down, across), (new_height, new_width) = llama4_canvas(info.image_processor, height, width)
    if down * across + (down * across > 1) != len(info.tiles):
        raise UnknownGridError(
            f"an image of {info.size} gives {down} x {across} tiles, but the prompt has {len(info.tiles)} tiles"
        )
    x, y = side * width / new_width, side * height / new_height  # a tile, in pixels of the image
    boxes = [Box(i * x, j * y, (i + 1) * x, (j + 1) * y) for j in range(down) for i in range(across)]
    views = [(box, "tiles" if len(boxes) > 1 else "image") for box in boxes]
    if len(boxes) > 1:
        views.append((info.area, "overview"))
    return [
        TokenGrid.over(patch_area(box, info.config), tile, view)
        for (box, view), tile in zip(views, info.tiles, strict=True)
    ]


class CornerTileResizer(GridResizer):
    """A cell is a tile. As soon as there are two tiles, there is an overview."""

    @property
    def side(self) -> int:
        return int(self.image_processor.size["height"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return llama4_canvas(self.image_processor, height, width)[0]

    def tokens(self, cells: int) -> int:
        of_tile = (self.side // int(self.processor.patch_size)) ** 2 // int(self.processor.downsample_ratio)
        return of_tile * (cells + (cells > 1))


LLAMA4 = register(
    Family(
        name="Llama 4",
        model_types=("llama4",),
        tiles=separated_tiles,
        geometry=corner_geometry,
        processors=("Llama4Processor",),
        resizer=CornerTileResizer,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
