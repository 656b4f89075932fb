"""What is known of one picture when its geometry is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..families import Tile
from .box import Box


@dataclass(frozen=True)
class ImageInfo:
    """config: the model's; images: the image processor; size: (width, height) of the picture; tiles: (rows, columns)
    of each grid that its tokens lie on, in order; alone: it is the only picture of its sample."""

    config: Any
    images: Any
    size: tuple[int, int]
    tiles: Sequence[Tile]
    alone: bool = True
    video: bool = False

    @property
    def whole(self) -> Box:
        return Box(0, 0, *self.size)


def encoder(config: Any) -> tuple[int, int]:
    """(side of the encoder's picture, side of its patches), in pixels."""
    vision = config.vision_config
    return _first(vision.image_size), _first(vision.patch_size)


def patched(box: Box, config: Any) -> Box:
    """The part of what reaches the encoder that lies under its patches: at 384 pixels and patches of 14, the last
    six pixels of each side are under none."""
    side, patch = encoder(config)
    share = side // patch * patch / side
    across, down = (box.right - box.left) * share, (box.bottom - box.top) * share
    return Box(box.left, box.top, box.left + across, box.top + down)


def _first(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)
