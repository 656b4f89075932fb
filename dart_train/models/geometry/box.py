"""A rectangle of a picture, and rows of intervals that rectangles are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Interval = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """In pixels of the picture as it was given; edges lie between pixels, and may lie outside of it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def across(self) -> Interval:
        return self.left, self.right

    @property
    def down(self) -> Interval:
        return self.top, self.bottom

    def within(self, width: float, height: float) -> Box | None:
        """The part that lies inside the picture."""
        left, right = max(self.left, 0.0), min(self.right, width)
        top, bottom = max(self.top, 0.0), min(self.bottom, height)
        return Box(left, top, right, bottom) if right - left > _NOTHING and bottom - top > _NOTHING else None

    def touches(self, other: Box, margin: float = 0.0) -> bool:
        return (
            self.left - margin < other.right
            and other.left < self.right + margin
            and self.top - margin < other.bottom
            and other.top < self.bottom + margin
        )

    def scaled(self, across: float, down: float) -> Box:
        return Box(self.left * across, self.top * down, self.right * across, self.bottom * down)


_NOTHING = 1e-6


def even(interval: Interval, parts: int) -> list[Interval]:
    """The interval in so many equal parts."""
    start, length = interval[0], interval[1] - interval[0]
    return [(start + length * i / parts, start + length * (i + 1) / parts) for i in range(parts)]


def mapped(intervals: list[Interval], to: Callable[[float], float]) -> list[Interval]:
    return [(to(start), to(stop)) for start, stop in intervals]
