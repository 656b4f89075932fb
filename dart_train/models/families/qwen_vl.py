"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: images at their own resolution, one token for each 2 x 2 patches.

The processor passes the grid of every image and video; a video has one grid for each few frames. The model computes
its position ids from the same grids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...reduction.batch_layout import SampleLayout
from ...reduction.budget import Keep
from ..transformers_compat import smart_resize
from .family import Family, Inputs, Rows, UnknownGridError, register, require_input
from .geometry import ImageInfo, Tile, TokenGrid
from .resizer import GridResizer

GRIDS = ("image_grid_thw", "video_grid_thw")


def grid_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """From the processor's grids, after the merger. A video is one tile per temporal patch; in Qwen3-VL a timestamp
    in text comes before each of them."""
    names = {config.image_token_id: "image_grid_thw", config.video_token_id: "video_grid_thw"}
    return tiles_of_grids(config, inputs, rows, lambda row, start: names[int(row.ids[start])])


def tiles_of_grids(
    config: Any, inputs: Inputs, rows: Rows, grid_of_run: Callable[[SampleLayout, int], str]
) -> list[list[Tile]]:
    """grid_of_run: the input that the grid of a run is in, from its row and where it starts."""
    waiting = {name: require_input(inputs, name) if inputs.get(name) is not None else [] for name in GRIDS}
    merge, missing, images = config.vision_config.spatial_merge_size, 0, list[list[Tile]]()
    for name, length in ((grid_of_run(row, start), stop - start) for row in rows for start, stop in row.runs):
        while length:
            if not missing:
                images.append(_next_grid(waiting, name, merge))
                missing = sum(height * width for height, width in images[-1])
            taken = min(missing, length)
            missing, length = missing - taken, length - taken
    return images


def _next_grid(waiting: dict[str, list[Any]], name: str, merge: int) -> list[Tile]:
    if not waiting[name]:
        raise UnknownGridError(
            f"{name} is missing from the model's inputs, or has fewer grids than the prompt has images"
        )
    frames, height, width = waiting[name].pop(0)
    return [(height // merge, width // merge)] * frames


def resized_geometry(info: ImageInfo) -> list[TokenGrid]:
    """All of the image, resized to a multiple of a token's side."""
    if not info.video:
        return [TokenGrid.over(info.area, tile, "image") for tile in info.tiles]
    frames = int(info.config.vision_config.temporal_patch_size)
    return [TokenGrid.over(info.area, tile, "video", i * frames) for i, tile in enumerate(info.tiles)]


class PatchResizer(GridResizer):
    """Any number of rows and columns; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.image_processor.patch_size * self.image_processor.merge_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        new_height, new_width = smart_resize(self.image_processor, height, width, self.side)
        return new_height // self.side, new_width // self.side

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}


def _qwen(name: str, processor: str, *model_types: str) -> Family:
    return register(
        Family(
            name=name,
            model_types=model_types,
            tiles=grid_tiles,
            reads=GRIDS,
            geometry=resized_geometry,
            video_geometry=True,
            processors=(processor,),
            resizer=PatchResizer,
            projectors=frozenset({"merger", "deepstack_merger_list"}),
            own_positions=True,
        )
    )


QWEN2_VL = _qwen("Qwen2-VL", "Qwen2VLProcessor", "qwen2_vl")
QWEN2_5_VL = _qwen("Qwen2.5-VL", "Qwen2_5_VLProcessor", "qwen2_5_vl")
# Qwen3.5 has the processor of Qwen3-VL, and a language model of linear and full attention layers.
QWEN3_VL = _qwen("Qwen3-VL", "Qwen3VLProcessor", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
