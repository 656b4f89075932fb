"""One look at one picture: kept patches as they are, dropped ones in the shade, pivots ringed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from .geometry import Box
from .style import EDGE, PIVOT, PIVOT_EDGE, SHADE, SHADE_SHARE, UNSEEN

Corners = tuple[int, int, int, int]  # left, top, right, bottom, the last two within


@dataclass(frozen=True)
class Patch:
    box: Box
    kept: bool
    pivot: bool = False


def still(picture: Image.Image, patches: Sequence[Patch], width: int) -> Image.Image:
    """The picture, `width` pixels wide."""
    scale = width / picture.width
    large = picture.convert("RGB").resize((width, max(1, round(picture.height * scale))), Image.Resampling.LANCZOS)
    corners = [_corners(patch.box, scale, large.size) for patch in patches]
    kept = [at for at, patch in zip(corners, patches, strict=True) if patch.kept]
    page = Image.composite(large, _hatched(_shaded(large), _mask(large, corners)), _mask(large, kept))
    if len(kept) < len(patches):
        _outline(page, kept)
    for at, patch in zip(corners, patches, strict=True):
        if patch.pivot:
            _ring(ImageDraw.Draw(page), at)
    return page


def _corners(box: Box, scale: float, size: tuple[int, int]) -> Corners:
    """Whole pixels, neighbours sharing none; never empty."""
    left, top = min(round(box.left * scale), size[0] - 1), min(round(box.top * scale), size[1] - 1)
    return left, top, max(left, round(box.right * scale) - 1), max(top, round(box.bottom * scale) - 1)


def _mask(page: Image.Image, corners: Sequence[Corners]) -> Image.Image:
    mask = Image.new("L", page.size)
    pen = ImageDraw.Draw(mask)
    for at in corners:
        pen.rectangle(at, fill=255)
    return mask


def _shaded(page: Image.Image) -> Image.Image:
    return Image.blend(page.convert("L").convert("RGB"), Image.new("RGB", page.size, SHADE), SHADE_SHARE)


def _hatched(page: Image.Image, seen: Image.Image) -> Image.Image:
    """Where no token looks at all, the shade is hatched."""
    if seen.getextrema() == (255, 255):
        return page
    lines = Image.new("L", page.size)
    pen, reach = ImageDraw.Draw(lines), page.width + page.height
    for start in range(-page.height, reach, 9):
        pen.line((start, page.height, start + page.height, 0), fill=110)
    return Image.composite(Image.new("RGB", page.size, UNSEEN), page, ImageChops.subtract(lines, seen))


def _outline(page: Image.Image, kept: Sequence[Corners]) -> None:
    """A thin line round each kept patch, so that dark pictures tell them from the shade."""
    line = Image.new("L", page.size)
    pen = ImageDraw.Draw(line)
    for at in kept:
        pen.rectangle(at, outline=120)
    page.paste(Image.new("RGB", page.size, EDGE), (0, 0), line)


def _ring(pen: ImageDraw.ImageDraw, at: Corners) -> None:
    thick = 3 if min(at[2] - at[0], at[3] - at[1]) > 14 else 2
    pen.rectangle((at[0] - 1, at[1] - 1, at[2] + 1, at[3] + 1), outline=PIVOT_EDGE)
    pen.rectangle(at, outline=PIVOT, width=thick)
    if min(at[2] - at[0], at[3] - at[1]) > 3 * thick:  # red things have pivots, too
        pen.rectangle((at[0] + thick, at[1] + thick, at[2] - thick, at[3] - thick), outline=EDGE)
