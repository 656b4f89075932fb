"""Types of quantities: a field says by its type what it may hold, and the reader checks it."""

from __future__ import annotations

from typing import Annotated

from ..reduction.schedule import Dropped, Fraction, Positive, Range
from ..reduction.schedule import KeepRange as Keep

__all__ = ["Count", "Dropped", "Fraction", "Keep", "NotNegative", "Positive", "Range", "Text", "Whole"]

Count = Annotated[int, Range("a whole number >= 1", lambda n: n >= 1)]
Whole = Annotated[int, Range("a whole number >= 0", lambda n: n >= 0)]
NotNegative = Annotated[float, Range("a number >= 0", lambda x: x >= 0)]
Text = Annotated[str, Range("some text", lambda s: bool(s.strip()))]
