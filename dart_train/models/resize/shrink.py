"""What a processor can make of a picture, in visual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...reduction.budget import Keep, tokens_to_keep

STRETCH = 1.5  # how far a picture's shape may change so that its grid fits into the budget


@dataclass(frozen=True)
class Size:
    """A picture resized to height x width becomes `tokens` visual tokens."""

    height: int
    width: int
    tokens: int


class Shrink:
    """One processor. A kind of encoder says what is `full`, and what can be `smaller`."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.images = processor, processor.image_processor

    def full(self, height: int, width: int) -> Size:
        """What the processor makes of a picture unasked."""
        raise NotImplementedError

    def smaller(self, height: int, width: int, tokens: int) -> Size:
        """The most tokens that are not more than `tokens`, or else the fewest that can be reached."""
        raise NotImplementedError

    def settings(self, keep: Keep) -> dict[str, Any]:
        """Settings of the image processor under which a resized picture stays as it is."""
        return {}

    def to(self, keep: Keep, height: int, width: int) -> Size:
        full = self.full(height, width)
        tokens = tokens_to_keep(keep, full.tokens)
        return full if tokens == full.tokens else self.smaller(height, width, tokens)

    def resized(self, picture: Image.Image, keep: Keep) -> Image.Image:
        size = self.to(keep, picture.height, picture.width)
        wanted = (size.width, size.height)
        if picture.size == wanted:
            return picture
        return picture.convert("RGB").resize(wanted, self.images.resample)


class Grid(Shrink):
    """A picture becomes rows x columns of square cells (tokens, or tiles), each `side` pixels wide."""

    @property
    def side(self) -> int:
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) that the processor chooses unasked."""
        raise NotImplementedError

    def tokens(self, cells: int) -> int:
        return cells

    def full(self, height: int, width: int) -> Size:
        return self._size(*self.grid(height, width))

    def smaller(self, height: int, width: int, tokens: int) -> Size:
        rows, columns = self.grid(height, width)
        cells = rows * columns
        while cells > 1 and self.tokens(cells) > tokens:
            cells -= 1
        return self._size(*fit(height, width, cells))

    def _size(self, rows: int, columns: int) -> Size:
        return Size(rows * self.side, columns * self.side, self.tokens(rows * columns))


def fit(height: int, width: int, cells: int) -> tuple[int, int]:
    """(rows, columns) in the picture's shape: each rounded up or down, as many of the cells as possible."""
    tall, wide = math.sqrt(cells * height / width), math.sqrt(cells * width / height)
    rows, columns = ({min(max(1, way(side)), cells) for way in (math.floor, math.ceil)} for side in (tall, wide))
    within = [(r, c) for r in rows for c in columns if r * c <= cells]
    in_shape = [(r, c) for r, c in within if 1 / STRETCH <= (r * width) / (c * height) <= STRETCH]
    return max(in_shape or within, key=lambda grid: grid[0] * grid[1])
