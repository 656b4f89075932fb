"""Ovis2: the image as an overview, then as many square tiles as cover it, row by row.

In the prompt every tile is a run of visual tokens of its own, with an indicator token between the tiles and one that
ends each image.
"""

from __future__ import annotations

from typing import Any

from ..transformers_compat import covering_grid
from .family import Family, Inputs, Rows, register
from .geometry import ImageInfo, Tile, TokenGrid, patch_area
from .internvl import tiles_and_overview
from .markers import square_tiles_to_end_marker
from .resizer import GridResizer


def indicated_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    return square_tiles_to_end_marker(rows)


def covering_geometry(info: ImageInfo) -> list[TokenGrid]:
    if len(info.tiles) == 1:
        return [TokenGrid.over(patch_area(info.area, info.config), info.tiles[0], "image")]
    width, height = info.size
    return tiles_and_overview(info, *covering_grid(info.image_processor, height, width), overview_first=True)


class CoveringResizer(GridResizer):
    """A cell is a tile. As soon as there are two tiles, there is an overview."""

    @property
    def side(self) -> int:
        return int(self.image_processor.size["height"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return covering_grid(self.image_processor, height, width)

    def tokens(self, cells: int) -> int:
        return int(self.processor.image_seq_length) * (cells + (cells > 1))


OVIS2 = register(
    Family(
        name="Ovis2",
        model_types=("ovis2",),
        tiles=indicated_tiles,
        geometry=covering_geometry,
        processors=("Ovis2Processor",),
        resizer=CoveringResizer,
        projectors=frozenset({"visual_embeddings_table"}),
    )
)
