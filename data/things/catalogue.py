"""The things: what they are called, what they are, and which of them are in no training image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

CATALOGUE = Path(__file__).with_name("catalogue.tsv")
STYLES = ("fluent", "noto")  # the first is the style of training
UNSEEN_EVERY = 6  # one thing of so many is kept for the split of unseen things


@dataclass(frozen=True)
class Thing:
    index: int  # its place in the catalogue, and in the sprite sheets
    code: str  # its Unicode code points, as the emoji packages name their files
    name: str
    plural: str
    category: str

    @property
    def seen(self) -> bool:
        return self.index % UNSEEN_EVERY != UNSEEN_EVERY - 1


@cache
def things() -> tuple[Thing, ...]:
    lines = CATALOGUE.read_text(encoding="utf-8").splitlines()
    return tuple(Thing(index, *line.split("\t")) for index, line in enumerate(lines))


def named(name: str) -> Thing:
    return next(thing for thing in things() if thing.name == name)


def an(name: str) -> str:
    """The name with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
