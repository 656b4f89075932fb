"""One look at a picture: a grid of visual tokens, and which rectangle of the picture each of them sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .box import Box, Interval, even


@dataclass(frozen=True)
class Place:
    """What one visual token sees: `box` of picture number `picture`, in its view `view`; of a video, from frame
    `frame` on. None: nothing of it (a line break, a class token, padding)."""

    picture: int
    view: str
    box: Box | None
    frame: int = 0


@dataclass(frozen=True)
class TokenGrid:
    """Tokens row by row. columns, rows: the intervals of the picture that they lie on; None: no part of it."""

    view: str
    columns: Sequence[Interval | None]
    rows: Sequence[Interval | None]
    frame: int = 0

    @classmethod
    def over(cls, box: Box, tile: tuple[int, int], view: str, frame: int = 0) -> TokenGrid:
        """A tile of (rows, columns) equal cells."""
        return cls(view, even(box.across, tile[1]), even(box.down, tile[0]), frame)

    @classmethod
    def blank(cls) -> TokenGrid:
        """A token that sees no place."""
        return cls("", [None], [None])

    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def places(self, picture: int, size: tuple[int, int]) -> Iterator[Place]:
        """size: (width, height) of the picture."""
        for down in self.rows:
            for across in self.columns:
                box = Box(across[0], down[0], across[1], down[1]) if across and down else None
                yield Place(picture, self.view, box and box.within(*size), self.frame)
