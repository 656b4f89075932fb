"""Where visual tokens are on an image: rectangles, grids of tokens, and what is known of the image.

A family's geometry function turns an `ImageInfo` into one `TokenGrid` for each of the image's tiles;
`dart_train.models.token_places` assembles them for a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]
Tile = tuple[int, int]  # rows, columns of tokens; a column of line-break tokens counts
_EMPTY = 1e-6


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the user's image; edges are between pixels, and may be outside the image."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def x_range(self) -> Interval:
        return self.left, self.right

    @property
    def y_range(self) -> Interval:
        return self.top, self.bottom

    def within(self, width: float, height: float) -> Box | None:
        """The part that is inside the image."""
        left, right = max(self.left, 0.0), min(self.right, width)
        top, bottom = max(self.top, 0.0), min(self.bottom, height)
        return Box(left, top, right, bottom) if right - left > _EMPTY and bottom - top > _EMPTY else None

    def touches(self, other: Box, margin: float = 0.0) -> bool:
        return (
            self.left - margin < other.right
            and other.left < self.right + margin
            and self.top - margin < other.bottom
            and other.top < self.bottom + margin
        )


@dataclass(frozen=True)
class TokenPlace:
    """What one visual token shows: rectangle `box` of image number `image`, in its view `view` (image, tiles,
    overview or video); of a video, from frame `frame` on. box None: nothing of it (a line break, a class token,
    padding)."""

    image: int
    view: str
    box: Box | None
    frame: int = 0


@dataclass(frozen=True)
class TokenGrid:
    """Tokens row by row. columns, rows: the intervals of the image that they cover; None: no part of it."""

    view: str
    columns: Sequence[Interval | None]
    rows: Sequence[Interval | None]
    frame: int = 0

    @classmethod
    def over(cls, box: Box, tile: Tile, view: str, frame: int = 0) -> TokenGrid:
        """Equal cells over a rectangle."""
        return cls(view, split_evenly(box.x_range, tile[1]), split_evenly(box.y_range, tile[0]), frame)

    @classmethod
    def blank(cls) -> TokenGrid:
        """One token that shows no part of the image."""
        return cls("", [None], [None])

    def shape(self) -> Tile:
        return len(self.rows), len(self.columns)

    def places(self, image: int, size: tuple[int, int]) -> Iterator[TokenPlace]:
        """size: (width, height) of the image."""
        for y_range in self.rows:
            for x_range in self.columns:
                box = Box(x_range[0], y_range[0], x_range[1], y_range[1]) if x_range and y_range else None
                yield TokenPlace(image, self.view, box and box.within(*size), self.frame)


@dataclass(frozen=True)
class ImageInfo:
    """One image (or video) of a prompt. config: the model's; size: (width, height) of the image as the processor was
    given it; tiles: the grids of its tokens, in order; alone: it is the only image of its sample."""

    config: Any
    image_processor: Any
    size: tuple[int, int]
    tiles: Sequence[Tile]
    alone: bool = True
    video: bool = False

    @property
    def area(self) -> Box:
        return Box(0, 0, *self.size)


def split_evenly(interval: Interval, parts: int) -> list[Interval]:
    start, length = interval[0], interval[1] - interval[0]
    return [(start + length * i / parts, start + length * (i + 1) / parts) for i in range(parts)]


def encoder_pixels(config: Any) -> tuple[int, int]:
    """(side of the vision encoder's input, side of its patches), in pixels."""
    vision = config.vision_config
    return _first(vision.image_size), _first(vision.patch_size)


def patch_area(box: Box, config: Any) -> Box:
    """The part of an encoder input that its patches cover: with 384 pixels and patches of 14, the last six pixels of
    each side are in no patch."""
    side, patch = encoder_pixels(config)
    covered = side // patch * patch / side
    width, height = (box.right - box.left) * covered, (box.bottom - box.top) * covered
    return Box(box.left, box.top, box.left + width, box.top + height)


def padded_square(width: int, height: int) -> Box:
    """A square as wide as the image's longer side, with the image in its middle."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return Box(-left, -top, side - left, side - top)


def _first(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)
