"""Qwen-VL: all of the picture, resized to a multiple of a token's side; a video: one grid for each few frames."""

from __future__ import annotations

from .sheet import TokenGrid
from .sight import ImageInfo


def merged(sight: ImageInfo) -> list[TokenGrid]:
    if not sight.video:
        return [TokenGrid.over(sight.whole, tile, "picture") for tile in sight.tiles]
    together = int(sight.config.vision_config.temporal_patch_size)
    return [TokenGrid.over(sight.whole, tile, "video", i * together) for i, tile in enumerate(sight.tiles)]
