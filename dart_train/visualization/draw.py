"""Panels side by side on one page, with the question above and the meaning of the marks below."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# Colours, letters and distances of all pictures.

PAPER = (255, 255, 255)
INK = (28, 32, 40)
PALE = (112, 119, 131)
SHADE = (16, 20, 30)  # what dropped patches sink into
SHADE_SHARE = 0.74
EDGE = (255, 255, 255)
PIVOT = (255, 64, 129)
PIVOT_EDGE = (60, 0, 24)
UNSEEN = (150, 156, 168)  # hatching, where no token looks
GAP = 16
LINE = 1.35  # of a letter's height


@functools.cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu comes with matplotlib and has most alphabets."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(file), size) if file.exists() else ImageFont.load_default(size)


def wrapped(text: str, width: int, size: int, bold: bool = False, most: int = 3) -> list[str]:
    """Lines no wider than `width`; what does not fit into `most` of them ends with an ellipsis."""
    letters, lines = font(size, bold), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if letters.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1] + " …"]
    return [cut(line, width, size, bold) for line in lines]


def cut(text: str, width: int, size: int, bold: bool = False) -> str:
    letters = font(size, bold)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def written(lines: list[str], size: int, bold: bool = False, colour: tuple[int, int, int] = INK) -> Image.Image:
    """Lines of text on paper, no wider than they need."""
    letters, height = font(size, bold), round(size * LINE)
    wide = max((int(letters.getlength(line)) + 1 for line in lines), default=1)
    page = Image.new("RGB", (max(1, wide), max(1, height * len(lines))), PAPER)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((0, number * height), line, fill=colour, font=letters)
    return page


def stacked(pieces: list[Image.Image], gap: int, least: int = 1) -> Image.Image:
    """One below the other, on a page of at least so many pixels across."""
    width = max(least, *(piece.width for piece in pieces))
    page = Image.new("RGB", (width, sum(p.height for p in pieces) + gap * (len(pieces) - 1)), PAPER)
    top = 0
    for piece in pieces:
        page.paste(piece, (0, top))
        top += piece.height + gap
    return page


def beside(pieces: list[Image.Image], gap: int) -> Image.Image:
    """One next to the other, tops in a line."""
    page = Image.new("RGB", (sum(p.width for p in pieces) + gap * (len(pieces) - 1),
                             max(p.height for p in pieces)), PAPER)  # fmt: skip
    left = 0
    for piece in pieces:
        page.paste(piece, (left, 0))
        left += piece.width + gap
    return page


IN_A_LINE = 4
KEPT = (236, 240, 246)
DROPPED = (74, 77, 85)  # what white sinks to in the shade


def side_by_side(
    panels: Sequence[Image.Image], heading: str = "", in_a_line: int = IN_A_LINE, legend: Image.Image | None = None
) -> Image.Image:
    """legend: what stands below; the meaning of an overlay's marks unless given."""
    if not panels:
        raise ValueError("there is nothing to put side by side: give at least one panel")
    lines = [list(panels[at : at + in_a_line]) for at in range(0, len(panels), in_a_line)]
    body = stacked([beside(line, GAP) for line in lines], GAP)
    head = [written(wrapped(heading, max(body.width, 320), 17, bold=True), 17, bold=True)] if heading else []
    return _framed(stacked([*head, body, legend or marks()], GAP))


def marks() -> Image.Image:
    each = [
        (_swatch((236, 240, 246)), "kept"),
        (_swatch(DROPPED), "dropped"),
        (_ring(), "pivot"),
        (_hatch(), "no token looks here"),
    ]
    return beside([beside([mark, written([name], 11, colour=PALE)], 5) for mark, name in each], GAP)


def _swatch(colour: tuple[int, int, int]) -> Image.Image:
    page = Image.new("RGB", (14, 14), colour)
    ImageDraw.Draw(page).rectangle((0, 0, 13, 13), outline=PALE)
    return page


def _ring() -> Image.Image:
    page = Image.new("RGB", (14, 14), PAPER)
    pen = ImageDraw.Draw(page)
    pen.rectangle((0, 0, 13, 13), outline=PIVOT_EDGE)
    pen.rectangle((1, 1, 12, 12), outline=PIVOT, width=3)
    return page


def _hatch() -> Image.Image:
    page = _swatch(SHADE)
    pen = ImageDraw.Draw(page)
    for start in (-8, 0, 8):
        pen.line((start, 14, start + 14, 0), fill=UNSEEN)
    return page


def _framed(page: Image.Image) -> Image.Image:
    framed = Image.new("RGB", (page.width + 2 * GAP, page.height + 2 * GAP), PAPER)
    framed.paste(page, (GAP, GAP))
    return framed
