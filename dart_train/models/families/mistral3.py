"""Mistral 3, and Pixtral: images at their own resolution, one token for each `spatial_merge_size` squared patches.

In the prompt a line-break token of the text follows each row of visual tokens, so that a row is a run of its own. The
processor passes the size that each image was resized to.
"""

from __future__ import annotations

from typing import Any

from ...reduction.budget import Keep
from ..transformers_compat import pixtral_size
from .family import Family, Inputs, Rows, register, require_input
from .geometry import Tile, encoder_pixels
from .qwen_vl import resized_geometry
from .resizer import GridResizer


def resized_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    side = encoder_pixels(config)[1] * int(getattr(config, "spatial_merge_size", 1))
    return [[(int(height) // side, int(width) // side)] for height, width in require_input(inputs, "image_sizes")]


class PixtralResizer(GridResizer):
    """Any number of rows and columns; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.processor.patch_size * self.processor.spatial_merge_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        new_height, new_width = pixtral_size(self.processor, height, width, self.side)
        return new_height // self.side, new_width // self.side

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}


MISTRAL3 = register(
    Family(
        name="Mistral 3, Pixtral",
        model_types=("mistral3",),
        tiles=resized_tiles,
        reads=("image_sizes",),
        geometry=resized_geometry,
        processors=("PixtralProcessor",),
        resizer=PixtralResizer,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
