"""GLM-4.1V, GLM-4.5V, GLM-4.6V and GLM-OCR: images at their own resolution, one token for each 2 x 2 patches.

As in Qwen-VL, but the frames of a video have the image's token too: those between the markers of a video are its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...reduction.batch_layout import SampleLayout
from ..transformers_compat import smart_resize_of_frames
from .family import Inputs, Rows, register
from .geometry import Tile
from .qwen_vl import QWEN2_VL, PatchResizer, tiles_of_grids


def glm_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    def grid_of_run(row: SampleLayout, start: int) -> str:
        before = row.ids[:start]
        opened, closed = (
            int((before == token).sum()) for token in (config.video_start_token_id, config.video_end_token_id)
        )
        return "video_grid_thw" if opened > closed else "image_grid_thw"

    return tiles_of_grids(config, inputs, rows, grid_of_run)


class FramePatchResizer(PatchResizer):
    """Of a processor that counts an image as a few equal frames."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        new_height, new_width = smart_resize_of_frames(self.image_processor, height, width, self.side)
        return new_height // self.side, new_width // self.side


_GLM = replace(
    QWEN2_VL,
    tiles=glm_tiles,
    no_video="its model class takes a batch with images or one with videos, not both: their tokens are the same",
    resizer=FramePatchResizer,
    projectors=frozenset({"merger", "downsample"}),
)
GLM4V = register(
    replace(_GLM, name="GLM-4.1V, GLM-4.5V", model_types=("glm4v", "glm4v_moe"), processors=("Glm4vProcessor",))
)
GLM46V = register(
    replace(_GLM, name="GLM-4.6V, GLM-OCR", model_types=("glm46v", "glmga", "glm_ocr"), processors=("Glm46VProcessor",))
)
