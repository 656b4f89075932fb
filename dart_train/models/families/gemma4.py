"""Gemma 4: images at their own aspect ratio, resized to a budget of tokens, each the mean of a block of patches.

The processor passes the place of every patch. The tokens of an image attend to each other in both directions in some of
the models.
"""

from __future__ import annotations

from typing import Any

import torch

from ...reduction.budget import Keep
from ..transformers_compat import aspect_preserving_size
from .family import Family, Inputs, Rows, UnknownGridError, register
from .geometry import Tile
from .qwen_vl import resized_geometry
from .resizer import GridResizer


def pooled_patch_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    places = inputs.get("image_position_ids")  # [images, patches, 2] (column, row), -1 where there is no patch
    if places is None:
        raise UnknownGridError("image_position_ids is missing from the model's inputs")
    block = int(config.vision_config.pooling_kernel_size)
    last = torch.as_tensor(places).amax(1)
    return [[((row + 1) // block, (column + 1) // block)] for column, row in last.tolist()]


class PooledPatchResizer(GridResizer):
    """Any number of rows and columns up to the budget; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.image_processor.patch_size * self.image_processor.pooling_kernel_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        new_height, new_width = aspect_preserving_size(self.image_processor, height, width)
        return new_height // self.side, new_width // self.side

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}


GEMMA4 = register(
    Family(
        name="Gemma 4",
        model_types=("gemma4",),
        tiles=pooled_patch_tiles,
        reads=("image_position_ids",),
        geometry=resized_geometry,
        processors=("Gemma4Processor",),
        resizer=PooledPatchResizer,
        projectors=frozenset({"embed_vision"}),
        bidirectional_images=True,
    )
)
