"""What a square encoder sees of a picture: after padding to a square, resizing and cropping, whichever of them the
image processor does (LLaVA-1.5 crops: what lies outside the middle is seen by no token)."""

from __future__ import annotations

from typing import Any

from .box import Box
from .sheet import TokenGrid
from .sight import ImageInfo, patched


def square(sight: ImageInfo) -> list[TokenGrid]:
    """Class tokens, if any, come first and see everything, hence no place."""
    shown = patched(seen(sight.images, *sight.size), sight.config)
    return [TokenGrid.blank() if tile == (1, 1) else TokenGrid.over(shown, tile, "picture") for tile in sight.tiles]


def seen(images: Any, width: int, height: int) -> Box:
    """The part of the picture that reaches the encoder; larger than the picture where it was padded."""
    box = _padded(width, height) if _pads(images) else Box(0, 0, width, height)
    across, down = box.right - box.left, box.bottom - box.top
    if images.do_resize:
        across, down = _resized(images.size, across, down)
    if not getattr(images, "do_center_crop", None):
        return box
    return _cropped(box, across, down, images.crop_size["width"], images.crop_size["height"])


def _pads(images: Any) -> bool:
    return hasattr(images, "pad_to_square") and bool(getattr(images, "do_pad", False))


def _padded(width: int, height: int) -> Box:
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Box(-left, -top, side - left, side - top)


def padded_square(width: int, height: int) -> Box:
    return _padded(width, height)


def _resized(size: Any, width: float, height: float) -> tuple[float, float]:
    """The size that the image processor resizes to."""
    short = size.get("shortest_edge") if hasattr(size, "get") else size.shortest_edge
    if not short:
        return size["width"], size["height"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _cropped(box: Box, width: float, height: float, wanted_width: int, wanted_height: int) -> Box:
    """The middle of a picture that was resized to width x height."""
    left, top = (width - wanted_width) // 2, (height - wanted_height) // 2
    x, y = (box.right - box.left) / width, (box.bottom - box.top) / height
    start = box.left + left * x, box.top + top * y
    return Box(*start, start[0] + wanted_width * x, start[1] + wanted_height * y)
