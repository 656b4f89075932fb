"""What is wrong, collected: a check that fails does not keep others from being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Told:
    problems: list[str] = field(default_factory=list)

    def of(self, act: Callable[[], T], place: str = "") -> T | None:
        """What `act` gives, or None where it fails, which is noted."""
        try:
            return act()
        except (ValueError, NotImplementedError, OSError, ImportError) as error:
            known = isinstance(error, ValueError | NotImplementedError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            self.problems.append(f"{place}: {text}" if place else text)
            return None

    def add(self, problems: Iterable[str], place: str = "") -> None:
        self.problems += [f"{place}: {problem}" if place else problem for problem in problems]

    def check(self, head: str) -> None:
        """Raises ValueError with all of it."""
        if self.problems:
            count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
            raise ValueError("\n".join([f"{head}: {count}", *(f"  {problem}" for problem in self.problems)]))
