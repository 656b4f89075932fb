"""All pictures of a sample under one method's choice, with a caption."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .choice import Choice
from .geometry import Picture, Place
from .still import Patch, still
from .style import INK, PALE, beside, cut, stacked, written

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
