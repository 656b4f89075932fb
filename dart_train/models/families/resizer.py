"""How a processor's images are made smaller, so that they become fewer visual tokens: the shared part.

Every family file has its own subclass; `dart_train.models.resize` applies it to a processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ...reduction.budget import Keep, tokens_to_keep

MAX_ASPECT_CHANGE = 1.5  # how far an image's aspect ratio may change so that its grid fits into the budget


@dataclass(frozen=True)
class ResizedImage:
    """An image resized to height x width becomes `tokens` visual tokens."""

    height: int
    width: int
    tokens: int


class Resizer:
    """For one processor. Subclasses implement `full` and `smaller`."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.image_processor = processor, processor.image_processor

    def full(self, height: int, width: int) -> ResizedImage:
        """What the processor makes of an image by itself."""
        raise NotImplementedError

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        """The size with the most tokens that are not more than `tokens`, or else the one with the fewest."""
        raise NotImplementedError

    def settings(self, keep: Keep) -> dict[str, Any]:
        """Settings of the image processor under which a resized image stays as it is."""
        return {}

    def processor_settings(self, keep: Keep) -> dict[str, Any]:
        """Settings of the processor around it under which it writes as many placeholders."""
        return {}

    def size_for(self, keep: Keep, height: int, width: int) -> ResizedImage:
        full = self.full(height, width)
        tokens = tokens_to_keep(keep, full.tokens)
        return full if tokens == full.tokens else self.smaller(height, width, tokens)

    def resize(self, image: Image.Image, keep: Keep) -> Image.Image:
        size = self.size_for(keep, image.height, image.width)
        if image.size == (size.width, size.height):
            return image
        return image.convert("RGB").resize((size.width, size.height), self.image_processor.resample)


class GridResizer(Resizer):
    """An image becomes rows x columns of square cells (tokens, or tiles), each `side` pixels wide."""

    @property
    def side(self) -> int:
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) that the processor chooses by itself."""
        raise NotImplementedError

    def tokens(self, cells: int) -> int:
        return cells

    def full(self, height: int, width: int) -> ResizedImage:
        return self._resized(*self.grid(height, width))

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        rows, columns = self.grid(height, width)
        cells = rows * columns
        while cells > 1 and self.tokens(cells) > tokens:
            cells -= 1
        return self._resized(*fit_grid(height, width, cells))

    def _resized(self, rows: int, columns: int) -> ResizedImage:
        return ResizedImage(rows * self.side, columns * self.side, self.tokens(rows * columns))


def fit_grid(height: int, width: int, cells: int) -> tuple[int, int]:
    """(rows, columns) near the image's aspect ratio: each rounded up or down, with as many of the cells as possible."""
    exact = math.sqrt(cells * height / width), math.sqrt(cells * width / height)
    rows, columns = ({min(max(1, way(side)), cells) for way in (math.floor, math.ceil)} for side in exact)
    within = [(r, c) for r in rows for c in columns if r * c <= cells]
    limit = MAX_ASPECT_CHANGE
    near = [(r, c) for r, c in within if 1 / limit <= (r * width) / (c * height) <= limit]
    return max(near or within, key=lambda grid: grid[0] * grid[1])
