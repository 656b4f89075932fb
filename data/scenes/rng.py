"""Random choices that are the same on every machine and under every Python version."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

Choice = TypeVar("Choice")


class PortableRandom:
    """Integer draws from a text seed.

    Python guarantees that string seeding and `random()` never change, but not `choice`, `sample` or `shuffle`. So
    everything is built on `random()`, a multiple of 2**-53, in exact integer arithmetic.
    """

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def below(self, limit: int) -> int:
        """A number in 0 .. limit - 1."""
        return int(self._random.random() * (1 << 53)) * limit >> 53

    def between(self, low: int, high: int) -> int:
        """A number in low .. high, both included."""
        return low + self.below(high - low + 1)

    def coin(self) -> bool:
        return self.below(2) == 1

    def choice(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.below(len(choices))]

    def sample(self, choices: Sequence[Choice], count: int) -> list[Choice]:
        """`count` different elements, in random order."""
        pool = list(choices)
        return [pool.pop(self.below(len(pool))) for _ in range(count)]
