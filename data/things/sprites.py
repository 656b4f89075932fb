"""The drawings of the things: one sheet per style, a square per thing, in the order of the catalogue."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from data.things.catalogue import STYLES, Thing

FOLDER = Path(__file__).with_name("sprites")
SIDE = 64  # pixels
COLUMNS = 16


def sheet_path(style: str, folder: Path = FOLDER) -> Path:
    return folder / f"{style}.png"


def corner(index: int) -> tuple[int, int]:
    """The upper left pixel of a thing's square in a sheet."""
    row, column = divmod(index, COLUMNS)
    return column * SIDE, row * SIDE


@cache
def _sheet(style: str) -> Image.Image:
    if style not in STYLES:
        raise ValueError(f"style {style!r} is unknown: choose one of {', '.join(STYLES)}")
    with Image.open(sheet_path(style)) as sheet:
        return sheet.convert("RGBA")


@cache
def sprite(thing: Thing, style: str) -> Image.Image:
    """[SIDE, SIDE] pixels, RGBA."""
    x, y = corner(thing.index)
    return _sheet(style).crop((x, y, x + SIDE, y + SIDE))
