"""A scene as pixels. The fonts are the DejaVu fonts that Matplotlib contains."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.scenes.rng import PortableRandom
from data.things.catalogue import STYLES
from data.things.scene import ROWS, Cell, ThingScene
from data.things.sprites import sprite

SIZE = 224
MARGIN = 4
TAG_HEIGHT = 20
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "DejaVuSans")
INKS = ((20, 20, 20), (130, 0, 0), (0, 40, 120), (0, 80, 30))
PAPERS = ((255, 255, 255), (255, 245, 170), (225, 240, 255), (235, 235, 235))

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def draw(scene: ThingScene, style: str = STYLES[0]) -> Image.Image:
    """[SIZE, SIZE] pixels, RGB."""
    image = _background(scene.background)
    for cell in scene.cells:
        if cell.thing:
            _draw_thing(image, cell, style, thing_box(scene, cell))
        if cell.text:
            _draw_paper(image, cell, text_box(scene, cell))
    return image


def cell_box(scene: ThingScene, cell: Cell) -> Box:
    wide, high = (SIZE - 2 * MARGIN) // scene.columns, (SIZE - 2 * MARGIN) // ROWS
    left, top = MARGIN + cell.column * wide, MARGIN + cell.row * high
    return left, top, left + wide, top + high


def thing_box(scene: ThingScene, cell: Cell) -> Box:
    """The square of a thing; a label or price is under it."""
    left, top, right, bottom = cell_box(scene, cell)
    bottom -= TAG_HEIGHT if cell.text else 0
    side = min(right - left, bottom - top) * cell.scale // 100
    x = left + (right - left - side) * cell.across // 100
    y = top + (bottom - top - side) * cell.down // 100
    return x, y, x + side, y + side


def text_box(scene: ThingScene, cell: Cell) -> Box:
    """The paper of a note, or of the label or price of a thing."""
    left, top, right, bottom = cell_box(scene, cell)
    if cell.thing is None:
        return left + 2, top + 8, right - 2, bottom - 8
    font, _ = _font_of(cell, (left, bottom - TAG_HEIGHT, right, bottom))
    width = int(font.getlength(cell.text)) + 6
    left += (right - left - width) // 2
    return left, bottom - TAG_HEIGHT, left + width, bottom


def _background(seed: int) -> Image.Image:
    """A light colour that fades into another one, with or without stripes, and a little noise."""
    rng = PortableRandom(f"background-{seed}")
    first, second = (np.array([rng.between(150, 250) for _ in range(3)]) for _ in range(2))
    rows, columns = np.indices((SIZE, SIZE))
    along = (rows if rng.coin() else columns) if rng.coin() else (rows + columns) // 2
    pixels = (first * (SIZE - along[..., None]) + second * along[..., None]) // SIZE
    if rng.coin():
        period = rng.between(12, 60)
        pixels = pixels - 12 * ((rows * rng.below(2) + columns) // period % 2)[..., None]
    tile = np.array([rng.below(7) - 3 for _ in range(64)]).reshape(8, 8)
    pixels = pixels + np.tile(tile, (SIZE // 8, SIZE // 8))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _draw_thing(image: Image.Image, cell: Cell, style: str, box: Box) -> None:
    assert cell.thing is not None
    side = box[2] - box[0]
    drawn = sprite(cell.thing, style)
    if cell.mirrored:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = drawn.rotate(cell.turn, Image.Resampling.BICUBIC).resize((side, side), Image.Resampling.BICUBIC)
    image.paste(drawn, box[:2], drawn)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _lines(cell: Cell) -> list[str]:
    return [cell.text] if cell.thing else cell.text.split()


def _font_of(cell: Cell, box: Box) -> tuple[ImageFont.FreeTypeFont, int]:
    """The largest size, up to 20, at which the text fits into the box, and the distance of two lines."""
    lines, name = _lines(cell), FONTS[cell.look % len(FONTS)]
    left, top, right, bottom = box
    for size in range(20, 5, -1):
        font, step = _font(name, size), size * 6 // 5
        if max(font.getlength(line) for line in lines) <= right - left - 6 and step * len(lines) <= bottom - top:
            break
    return font, step


def _draw_paper(image: Image.Image, cell: Cell, box: Box) -> None:
    ink, paper = INKS[cell.look // 4 % len(INKS)], PAPERS[cell.look // 16 % len(PAPERS)]
    left, top, right, bottom = box
    font, step = _font_of(cell, box)
    canvas, lines = ImageDraw.Draw(image), _lines(cell)
    canvas.rectangle((left, top, right - 1, bottom - 1), fill=paper, outline=(120, 120, 120))
    first = (top + bottom) // 2 - step * (len(lines) - 1) // 2
    for number, line in enumerate(lines):
        canvas.text(((left + right) // 2, first + number * step), line, font=font, fill=ink, anchor="mm")
