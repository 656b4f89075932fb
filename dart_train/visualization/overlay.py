"""What one method chose in one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

from ..hooks import Kept
from ..models.geometry import Box, Picture, Place
from .draw import EDGE, INK, PALE, PIVOT, PIVOT_EDGE, SHADE, SHADE_SHARE, UNSEEN, beside, cut, stacked, written

# All pictures of a sample under one method's choice, with a caption.

SMALL_SHARE = 0.42  # width of an overview beside that of the tiles
STRIP = 4  # frames of a video in a line
TALLEST = 1.6  # of the width
_ORDER = ("tiles", "picture", "video", "overview")


def overlay(
    pictures: Sequence[Picture], places: Sequence[Place], choice: Choice, title: str = "", width: int = 336
) -> Image.Image:
    """A panel `width` pixels wide: the caption, then each picture as each of its views was seen and kept.

    pictures: those of one sample, as the processor was given them, a video as its frames; places: what each of its
    visual tokens sees; choice: over the same tokens.
    """
    _check(pictures, places, choice)
    pieces = [_caption(places, choice, title, width)]
    for number, picture in enumerate(pictures):
        mine = [(place, i) for i, place in enumerate(places) if place.picture == number and place.box is not None]
        views = sorted({place.view for place, _ in mine}, key=_ORDER.index)
        pieces += [_view(picture, [(p, i) for p, i in mine if p.view == view], choice, view, width) for view in views]
    return stacked(pieces, 8, width)


def _check(pictures: Sequence[Picture], places: Sequence[Place], choice: Choice) -> None:
    numbers = {"kept": len(choice.kept), "pivots": len(places if choice.pivots is None else choice.pivots)}
    wrong = [f"{name} has {number} entries" for name, number in numbers.items() if number != len(places)]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; expected one for each of the {len(places)} visual tokens")
    if places and (last := max(place.picture for place in places)) >= len(pictures):
        raise ValueError(f"{len(pictures)} pictures were given, but the tokens see {last + 1}")


def _view(picture: Picture, mine: Sequence[tuple[Place, int]], choice: Choice, view: str, width: int) -> Image.Image:
    if not isinstance(picture, Image.Image):
        return _strip(picture, mine, choice, width)
    if view != "overview":
        return _look(picture, mine, choice, width)
    small = _look(picture, mine, choice, round(width * SMALL_SHARE))
    kept = sum(bool(choice.kept[i]) for _, i in mine)
    told = written(["overview", f"{kept} of {len(mine)}"], 11, colour=PALE)
    return beside([small, told], 8)


def _strip(frames: Sequence[Image.Image], mine: Sequence[tuple[Place, int]], choice: Choice, width: int) -> Image.Image:
    """A film: of the frames that a token sees together, the first."""
    starts = sorted({place.frame for place, _ in mine})
    each = (width - 4 * (STRIP - 1)) // STRIP
    looks = [_look(frames[start], [(p, i) for p, i in mine if p.frame == start], choice, each) for start in starts]
    return stacked([beside(looks[at : at + STRIP], 4) for at in range(0, len(looks), STRIP)], 4)


def _look(picture: Image.Image, mine: Sequence[tuple[Place, int]], choice: Choice, width: int) -> Image.Image:
    pivots = choice.pivots
    patches = [
        Patch(place.box, bool(choice.kept[i]), pivots is not None and bool(pivots[i]))
        for place, i in mine
        if place.box is not None
    ]
    return still(picture, patches, max(1, min(width, round(TALLEST * width * picture.width / picture.height))))


def _caption(places: Sequence[Place], choice: Choice, title: str, width: int) -> Image.Image:
    """The method's name, and under it what it kept and what it started from: always as tall, so that the pictures
    of a line of panels stand level."""
    total, number = len(choice.kept), choice.number
    share = f" ({number / total:.1%})" if total else ""
    told = [f"{number} of {total} visual tokens{share}" if number < total else f"all {total} visual tokens"]
    blank = sum(bool(kept) and place.box is None for place, kept in zip(places, choice.kept, strict=True))
    told[0] += f", {blank} without a place" if blank else ""
    told.append("" if choice.pivots is None else _pivots(choice))
    lines = [cut(text, width, 12) for text in told]
    name = [written([cut(title, width, 16, bold=True)], 16, bold=True, colour=INK)] if title else []
    return stacked([*name, written(lines, 12, colour=PALE)], 0)


def _pivots(choice: Choice) -> str:
    images = sum(map(bool, choice.pivots or ()))
    words = " ".join(f"“{word}”" for word in choice.words)
    return f"pivots: {images} in the picture" + (f", {words}" if words else "")


# One look at one picture: kept patches as they are, dropped ones in the shade, pivots ringed.

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


@dataclass(frozen=True)
class Choice:
    """kept, pivots [N] bool over the sample's visual tokens, in the order of the prompt; pivots is None where a method
    has none. words: text tokens that were pivots."""

    kept: Sequence[bool]
    pivots: Sequence[bool] | None = None
    words: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        return sum(map(bool, self.kept))


def chosen(kept: Kept, row: int = 0, ids: Tensor | None = None, tokenizer: Any = None) -> Choice:
    """Row `row` of a forward. With its ids [L] and the tokenizer the pivots among the text are told as words."""
    visual = kept.visual[row].cpu()
    mine = kept.kept_visual[row].cpu()[visual].tolist()
    if kept.pivots is None:
        return Choice(mine)
    pivots = kept.pivots[row].cpu()
    words: tuple[str, ...] = ()
    if ids is not None and tokenizer is not None:
        words = tuple(tokenizer.decode([token]).strip() or "␣" for token in ids.cpu()[pivots & ~visual].tolist())
    return Choice(mine, pivots[visual].tolist(), words)


def everything(number: int) -> Choice:
    """All tokens, as with no reduction."""
    return Choice([True] * number)
