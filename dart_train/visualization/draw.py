"""Text, rows and columns of images, and pages of panels with a heading above and a legend below."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 32, 40)
PALE: Colour = (112, 119, 131)
SHADE: Colour = (16, 20, 30)  # dropped patches are blended with it
SHADE_SHARE = 0.74
EDGE: Colour = (255, 255, 255)
PIVOT: Colour = (255, 64, 129)
PIVOT_EDGE: Colour = (60, 0, 24)
SCORED: Colour = (255, 159, 28)  # kept by a trained scorer
UNCOVERED: Colour = (150, 156, 168)  # hatching where the image has no token
KEPT: Colour = (236, 240, 246)  # legend
DROPPED: Colour = (74, 77, 85)  # legend: white in the shade
GAP = 16  # pixels between panels
LINE_HEIGHT = 1.35  # of the font size
PANELS_IN_A_ROW = 4
_MARK = 14  # side of a mark in the legend


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu, which comes with matplotlib and has most alphabets."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), size) if file.exists() else ImageFont.load_default(size)


def wrap_text(text: str, width: int, size: int, bold: bool = False, max_lines: int = 3) -> list[str]:
    """Lines no wider than `width`; a text that does not fit into `max_lines` ends with an ellipsis."""
    letters, lines = font(size, bold), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1] + " …"]
    return [ellipsize(line, width, size, bold) for line in lines]


def ellipsize(text: str, width: int, size: int, bold: bool = False) -> str:
    letters = font(size, bold)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def text_image(lines: list[str], size: int, bold: bool = False, colour: Colour = INK) -> Image.Image:
    """Lines of text on white, no wider than they need."""
    letters, height = font(size, bold), round(size * LINE_HEIGHT)
    wide = max((int(letters.getlength(line)) + 1 for line in lines), default=1)
    page = Image.new("RGB", (max(1, wide), max(1, height * len(lines))), PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((0, number * height), line, fill=colour, font=letters)
    return page


def vstack(pieces: list[Image.Image], gap: int, min_width: int = 1) -> Image.Image:
    """One below the other."""
    width = max(min_width, *(piece.width for piece in pieces))
    page = Image.new("RGB", (width, sum(p.height for p in pieces) + gap * (len(pieces) - 1)), PAPER)
    top = 0
    for piece in pieces:
        page.paste(piece, (0, top))
        top += piece.height + gap
    return page


def hstack(pieces: list[Image.Image], gap: int) -> Image.Image:
    """One next to the other, aligned at the top."""
    page = Image.new("RGB", (sum(p.width for p in pieces) + gap * (len(pieces) - 1),
                             max(p.height for p in pieces)), PAPER)  # fmt: skip
    left = 0
    for piece in pieces:
        page.paste(piece, (left, 0))
        left += piece.width + gap
    return page


def side_by_side(
    panels: Sequence[Image.Image],
    heading: str = "",
    in_a_row: int = PANELS_IN_A_ROW,
    bottom: Image.Image | None = None,
) -> Image.Image:
    """A page of panels. bottom: what is below them; by default the legend of an overlay."""
    if not panels:
        raise ValueError("no panels were given: give at least one")
    rows = [list(panels[start : start + in_a_row]) for start in range(0, len(panels), in_a_row)]
    body = vstack([hstack(row, GAP) for row in rows], GAP)
    head = [text_image(wrap_text(heading, max(body.width, 320), 17, bold=True), 17, bold=True)] if heading else []
    page = vstack([*head, body, bottom or legend()], GAP)
    framed = Image.new("RGB", (page.width + 2 * GAP, page.height + 2 * GAP), PAPER)
    framed.paste(page, (GAP, GAP))
    return framed


def legend(scorer: bool = False) -> Image.Image:
    """The marks of an overlay and what they mean; with those of a trained scorer."""
    marks = [
        (_swatch(KEPT), "kept"),
        (_swatch(DROPPED), "dropped"),
        (_ring_mark(), "pivot"),
        *([(_scored_mark(), "scorer")] if scorer else []),
        (_hatch_mark(), "no token here"),
    ]
    return hstack([hstack([mark, text_image([name], 11, colour=PALE)], 5) for mark, name in marks], GAP)


def _swatch(colour: Colour) -> Image.Image:
    mark = Image.new("RGB", (_MARK, _MARK), colour)
    ImageDraw.Draw(mark).rectangle((0, 0, _MARK - 1, _MARK - 1), outline=PALE)
    return mark


def _ring_mark() -> Image.Image:
    mark = Image.new("RGB", (_MARK, _MARK), PAPER)
    pen = ImageDraw.Draw(mark)
    pen.rectangle((0, 0, _MARK - 1, _MARK - 1), outline=PIVOT_EDGE)
    pen.rectangle((1, 1, _MARK - 2, _MARK - 2), outline=PIVOT, width=3)
    return mark


def _scored_mark() -> Image.Image:
    mark = Image.new("RGB", (_MARK, _MARK), KEPT)
    ImageDraw.Draw(mark).rectangle((0, 0, _MARK - 1, _MARK - 1), outline=SCORED, width=3)
    return mark


def _hatch_mark() -> Image.Image:
    mark = _swatch(SHADE)
    pen = ImageDraw.Draw(mark)
    for start in (-8, 0, 8):
        pen.line((start, _MARK, start + _MARK, 0), fill=UNCOVERED)
    return mark
