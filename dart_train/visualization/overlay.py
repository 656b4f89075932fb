"""The visual tokens that a method kept, drawn over the images of a sample: kept patches unchanged, dropped patches in
the shade, pivots with a ring, a caption above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageDraw
from torch import Tensor

from ..hooks import Kept
from ..models.families import Box, TokenPlace
from ..models.token_places import ImageOrFrames
from .draw import (
    EDGE,
    INK,
    PALE,
    PIVOT,
    PIVOT_EDGE,
    SCORED,
    SHADE,
    SHADE_SHARE,
    UNCOVERED,
    ellipsize,
    hstack,
    text_image,
    vstack,
)

OVERVIEW_SHARE = 0.42  # width of an overview, of the width of the tiles
FRAMES_IN_A_ROW = 4  # of a video
MAX_HEIGHT = 1.6  # of the width
_VIEWS = ("tiles", "image", "video", "overview")  # in this order from the top

Corners = tuple[int, int, int, int]  # left, top, right, bottom; the last two are inside
Numbered = Sequence[tuple[int, TokenPlace]]  # (number of the visual token, its place)


@dataclass(frozen=True)
class Choice:
    """What one method kept in one sample. kept, pivots [N] bool over the sample's visual tokens, in the order of the
    prompt; pivots is None where a method has none. words: the pivots among the text tokens. scored [N] bool: what a
    trained scorer decided to keep; None: there is no scorer."""

    kept: Sequence[bool]
    pivots: Sequence[bool] | None = None
    words: tuple[str, ...] = ()
    scored: Sequence[bool] | None = None

    @property
    def number(self) -> int:
        return sum(map(bool, self.kept))


def choice_of_row(kept: Kept, row: int = 0, ids: Tensor | None = None, tokenizer: Any = None) -> Choice:
    """Row `row` of a forward. ids [L] of the row and the tokenizer: for the words of text pivots."""
    visual = kept.visual[row].cpu()
    mine = kept.kept_visual[row].cpu()[visual].tolist()
    scored = None if kept.scored is None else kept.scored[row].cpu()[visual].tolist()
    if kept.pivots is None:
        return Choice(mine, scored=scored)
    pivots = kept.pivots[row].cpu()
    words: tuple[str, ...] = ()
    if ids is not None and tokenizer is not None:
        words = tuple(tokenizer.decode([token]).strip() or "␣" for token in ids.cpu()[pivots & ~visual].tolist())
    return Choice(mine, pivots[visual].tolist(), words, scored)


def full_choice(number: int) -> Choice:
    """All tokens, as without a reduction."""
    return Choice([True] * number)


def overlay_panel(
    images: Sequence[ImageOrFrames],
    places: Sequence[TokenPlace],
    choice: Choice,
    title: str = "",
    width: int = 336,
    answer: str | None = None,
) -> Image.Image:
    """A panel `width` pixels wide: the caption, then each image with each of its views.

    images: those of one sample, as the processor was given them, a video as its frames; places: of each of its visual
    tokens; choice: over the same tokens; answer: a line of its own below the images, empty ones too.
    """
    _check(images, places, choice)
    pieces = [_caption(places, choice, title, width)]
    for number, image in enumerate(images):
        mine = [(i, place) for i, place in enumerate(places) if place.image == number and place.box is not None]
        for view in sorted({place.view for _, place in mine}, key=_VIEWS.index):
            pieces.append(_view(image, [(i, p) for i, p in mine if p.view == view], choice, view, width))
    if answer is not None:
        pieces.append(text_image([ellipsize(answer, width, 15, bold=True)], 15, bold=True))
    return vstack(pieces, 8, width)


def _check(images: Sequence[ImageOrFrames], places: Sequence[TokenPlace], choice: Choice) -> None:
    numbers = {"kept": len(choice.kept), "pivots": len(places if choice.pivots is None else choice.pivots)}
    wrong = [f"{name} has {number} entries" for name, number in numbers.items() if number != len(places)]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}; expected one for each of the {len(places)} visual tokens")
    if places and (last := max(place.image for place in places)) >= len(images):
        raise ValueError(f"{len(images)} images were given, but the tokens are of {last + 1}")


def _caption(places: Sequence[TokenPlace], choice: Choice, title: str, width: int) -> Image.Image:
    """The method's name, how much it kept and its pivots: always of the same height, so that the images of a row of
    panels are aligned."""
    total, number = len(choice.kept), choice.number
    share = f" ({number / total:.1%})" if total else ""
    kept = f"{number} of {total} visual tokens{share}" if number < total else f"all {total} visual tokens"
    blank = sum(bool(keep) and place.box is None for place, keep in zip(places, choice.kept, strict=True))
    kept += f", {blank} without a place" if blank else ""
    pivots = ""
    if choice.pivots is not None:
        words = " ".join(f"“{word}”" for word in choice.words)
        pivots = f"pivots: {sum(map(bool, choice.pivots))} in the image" + (f", {words}" if words else "")
    elif choice.scored is not None:
        by_score = sum(map(bool, choice.scored))
        pivots = f"{by_score} by the scorer, {choice.number - by_score} by DART"
    name = [text_image([ellipsize(title, width, 16, bold=True)], 16, bold=True, colour=INK)] if title else []
    return vstack([*name, text_image([ellipsize(line, width, 12) for line in (kept, pivots)], 12, colour=PALE)], 0)


def _view(image: ImageOrFrames, tokens: Numbered, choice: Choice, view: str, width: int) -> Image.Image:
    if not isinstance(image, Image.Image):
        return _video_strip(image, tokens, choice, width)
    if view != "overview":
        return _draw_view(image, tokens, choice, width)
    small = _draw_view(image, tokens, choice, round(width * OVERVIEW_SHARE))
    kept = sum(bool(choice.kept[i]) for i, _ in tokens)
    return hstack([small, text_image(["overview", f"{kept} of {len(tokens)}"], 11, colour=PALE)], 8)


def _video_strip(frames: Sequence[Image.Image], tokens: Numbered, choice: Choice, width: int) -> Image.Image:
    """Draws the first of the frames that each token shows together."""
    starts = sorted({place.frame for _, place in tokens})
    each = (width - 4 * (FRAMES_IN_A_ROW - 1)) // FRAMES_IN_A_ROW
    drawn = [_draw_view(frames[start], [t for t in tokens if t[1].frame == start], choice, each) for start in starts]
    rows = [drawn[start : start + FRAMES_IN_A_ROW] for start in range(0, len(drawn), FRAMES_IN_A_ROW)]
    return vstack([hstack(row, 4) for row in rows], 4)


def _draw_view(image: Image.Image, tokens: Numbered, choice: Choice, width: int) -> Image.Image:
    pivots, scored = choice.pivots, choice.scored
    patches = [
        OverlayPatch(
            place.box,
            bool(choice.kept[i]),
            pivots is not None and bool(pivots[i]),
            scored is not None and bool(scored[i]),
        )
        for i, place in tokens
        if place.box is not None
    ]
    return draw_overlay(image, patches, max(1, min(width, round(MAX_HEIGHT * width * image.width / image.height))))


@dataclass(frozen=True)
class OverlayPatch:
    box: Box
    kept: bool
    pivot: bool = False
    scored: bool = False


def draw_overlay(image: Image.Image, patches: Sequence[OverlayPatch], width: int) -> Image.Image:
    """One image, `width` pixels wide."""
    scale = width / image.width
    large = image.convert("RGB").resize((width, max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    corners = [_corners(patch.box, scale, large.size) for patch in patches]
    kept = [at for at, patch in zip(corners, patches, strict=True) if patch.kept]
    shaded = Image.blend(large.convert("L").convert("RGB"), Image.new("RGB", large.size, SHADE), SHADE_SHARE)
    page = Image.composite(large, _hatched(shaded, _mask(large, corners)), _mask(large, kept))
    if len(kept) < len(patches):
        _outline(page, kept)
    for at, patch in zip(corners, patches, strict=True):
        if patch.pivot:
            _ring(ImageDraw.Draw(page), at)
        elif patch.scored:
            ImageDraw.Draw(page).rectangle(at, outline=SCORED, width=3 if at[2] - at[0] > 14 else 2)
    return page


def _corners(box: Box, scale: float, size: tuple[int, int]) -> Corners:
    """The corners in full pixels; neighbours share none, and no patch is empty."""
    left, top = min(round(box.left * scale), size[0] - 1), min(round(box.top * scale), size[1] - 1)
    return left, top, max(left, round(box.right * scale) - 1), max(top, round(box.bottom * scale) - 1)


def _mask(page: Image.Image, corners: Sequence[Corners]) -> Image.Image:
    mask = Image.new("L", page.size)
    pen = ImageDraw.Draw(mask)
    for at in corners:
        pen.rectangle(at, fill=255)
    return mask


def _hatched(page: Image.Image, covered: Image.Image) -> Image.Image:
    """Hatching where no token covers the image."""
    if covered.getextrema() == (255, 255):
        return page
    lines = Image.new("L", page.size)
    pen = ImageDraw.Draw(lines)
    for start in range(-page.height, page.width + page.height, 9):
        pen.line((start, page.height, start + page.height, 0), fill=110)
    return Image.composite(Image.new("RGB", page.size, UNCOVERED), page, ImageChops.subtract(lines, covered))


def _outline(page: Image.Image, kept: Sequence[Corners]) -> None:
    """A thin line round each kept patch, so that dark patches differ from the shade."""
    line = Image.new("L", page.size)
    pen = ImageDraw.Draw(line)
    for at in kept:
        pen.rectangle(at, outline=120)
    page.paste(Image.new("RGB", page.size, EDGE), (0, 0), line)


def _ring(pen: ImageDraw.ImageDraw, at: Corners) -> None:
    thick = 3 if min(at[2] - at[0], at[3] - at[1]) > 14 else 2
    pen.rectangle((at[0] - 1, at[1] - 1, at[2] + 1, at[3] + 1), outline=PIVOT_EDGE)
    pen.rectangle(at, outline=PIVOT, width=thick)
    if min(at[2] - at[0], at[3] - at[1]) > 3 * thick:  # a light line inside, for pivots on red areas
        pen.rectangle((at[0] + thick, at[1] + thick, at[2] - thick, at[3] - thick), outline=EDGE)
