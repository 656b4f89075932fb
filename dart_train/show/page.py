"""Panels side by side on one page, with the question above and the meaning of the marks below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .style import GAP, PALE, PAPER, PIVOT, PIVOT_EDGE, SHADE, UNSEEN, beside, stacked, wrapped, written

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
