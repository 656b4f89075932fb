"""From a scene to pixels. Only integer geometry and masks of this module, so every version of Pillow gives the same
pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.scenes import font
from data.scenes.difficulty import COLOURS, PAPERS, Level
from data.scenes.scene import Item, Scene, plate_extent

INK = {"light": (255, 255, 255), "dark": (0, 0, 0)}
PALE = ("yellow", "cyan", "pink")  # plates of these colours are written on in dark ink


def inside(shape: str, u: Any, v: Any, n: int) -> Any:
    """Whether the point `u` to the right of the centre and `v` below it is in the shape of half width `n`. Works for
    numbers and for arrays."""
    distance = u * u + v * v
    if shape == "circle":
        return distance <= n * n + n
    if shape == "square":
        return (abs(u) * 8 <= n * 7) & (abs(v) * 8 <= n * 7)
    if shape == "triangle":
        return abs(u) * 2 <= v + n
    if shape == "cross":
        return (abs(u) * 3 <= n) | (abs(v) * 3 <= n)
    if shape == "diamond":
        return abs(u) + abs(v) <= n
    if shape == "ring":
        return (n * n * 36 <= distance * 100) & (distance <= n * n + n)
    if shape == "moon":
        return (distance <= n * n + n) & ((u - n // 2) ** 2 + v * v > n * n * 5 // 8)
    if shape == "star":
        return (2 * abs(u) + n) * (2 * abs(v) + n) <= n * n * 3
    if shape == "arrow":
        return ((u < 0) & (abs(v) * 3 <= n)) | ((u >= 0) & (abs(v) <= n - u))
    if shape == "heart":
        lobes = (2 * abs(u) - n) ** 2 + (2 * v + n) ** 2 <= n * n
        return lobes | ((2 * v >= -n) & (10 * abs(u) + 7 * v <= 6 * n))
    raise ValueError(f"shape {shape!r} has no outline: add one to `inside`")


@cache
def shape_mask(shape: str, size: int) -> Image.Image:
    """[size, size] mask, 255 inside the shape. Coordinates are doubled so that there is a centre."""
    places = 2 * np.arange(size) - (size - 1)
    return Image.fromarray(np.uint8(255) * inside(shape, places[None], places[:, None], size - 1))


@cache
def glyph_mask(character: str, scale: int) -> Image.Image:
    width, height = font.WIDTH * scale, font.HEIGHT * scale
    bits = (font.dot(character, x // scale, y // scale) for y in range(height) for x in range(width))
    return Image.frombytes("L", (width, height), bytes(255 * bit for bit in bits))


@cache
def boxed(character: str, scale: int, box: tuple[int, int]) -> NDArray[np.uint8]:
    """[height, width]: the character's mask in the centre of its box. The size of the box is in font dots."""
    mask = np.asarray(glyph_mask(character, scale))
    left, top = (box[0] - font.WIDTH) // 2 * scale, (box[1] - font.HEIGHT) // 2 * scale
    around = np.zeros((box[1] * scale, box[0] * scale), np.uint8)
    around[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return around


def character_boxes(level: Level, plate: Item) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
    """Each character of a plate and its box: left, top, right, bottom."""
    width, height = plate_extent(level, "0", plate.size)
    for place, character in enumerate(plate.text):
        left = plate.x + place * width
        yield character, (left, plate.y, left + width, plate.y + height)


def draw(scene: Scene) -> Image.Image:
    """The RGB image of a scene."""
    level = scene.level
    image = Image.new("RGB", (level.size, level.size), PAPERS[scene.paper])
    for item in scene.items:
        if item.text:
            _draw_plate(image, level, item)
        else:
            image.paste(COLOURS[item.colour], (item.x, item.y), shape_mask(item.what, item.size))
    return image


def _draw_plate(image: Image.Image, level: Level, plate: Item) -> None:
    width, height = plate_extent(level, plate.text, plate.size)
    image.paste(COLOURS[plate.colour], (plate.x, plate.y, plate.x + width, plate.y + height))
    ink = INK["dark" if plate.colour in PALE else "light"]
    written = np.hstack([boxed(character, plate.size, level.box) for character in plate.text])
    image.paste(ink, (plate.x, plate.y), Image.fromarray(written))
