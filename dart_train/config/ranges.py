"""Types of quantities: a field says by its type what it may hold, and the reader checks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from ..reduction.budget import check_keep


@dataclass(frozen=True)
class Range:
    """A condition on a value, and the words for it."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Range("a whole number >= 1", lambda n: n >= 1)]
Whole = Annotated[int, Range("a whole number >= 0", lambda n: n >= 0)]
Positive = Annotated[float, Range("a number > 0", lambda x: x > 0)]
NotNegative = Annotated[float, Range("a number >= 0", lambda x: x >= 0)]
Fraction = Annotated[float, Range("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Dropped = Annotated[float, Range("a dropped share: a number >= 0 and < 1", lambda x: 0 <= x < 1)]
Text = Annotated[str, Range("some text", lambda s: bool(s.strip()))]
Keep = Annotated[
    int | float,
    Range("a number of tokens (an int >= 1) or a ratio (a float in (0, 1])", lambda k: check_keep(k) is None),
]
