"""Aya Vision: square tiles as in InternVL, then the image once more as an overview.

In the prompt every tile is a run of visual tokens of its own, with the number of the tile in text before it and a
marker after the last one.
"""

from __future__ import annotations

from typing import Any

from .family import Family, Inputs, Rows, register
from .geometry import Tile
from .internvl import CanvasResizer, canvas_geometry
from .markers import square_tiles_to_end_marker


def numbered_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    return square_tiles_to_end_marker(rows)


class NumberedTileResizer(CanvasResizer):
    def tokens(self, cells: int) -> int:
        side = int(self.processor.img_size) // int(self.processor.patch_size)
        return side * side * (cells + (cells > 1))


AYA_VISION = register(
    Family(
        name="Aya Vision",
        model_types=("aya_vision",),
        tiles=numbered_tiles,
        geometry=canvas_geometry,
        processors=("AyaVisionProcessor",),
        resizer=NumberedTileResizer,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
