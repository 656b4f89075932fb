"""The size and the content of scenes at each difficulty."""

from __future__ import annotations

from dataclasses import dataclass

from data.scenes.vocabulary import words_between

COLOURS = {
    "red": (214, 40, 40),
    "green": (30, 145, 60),
    "blue": (35, 80, 215),
    "yellow": (248, 205, 30),
    "purple": (130, 45, 165),
    "cyan": (50, 195, 210),
    "pink": (250, 135, 185),
    "brown": (125, 78, 40),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring", "moon", "star", "arrow", "heart")
PAPERS = ((238, 238, 238), (252, 248, 236), (232, 242, 248), (240, 234, 246), (234, 246, 236))


@dataclass(frozen=True)
class Level:
    """Images of `size` pixels with `grid` x `grid` cells of `cell` pixels; ranges include both ends."""

    name: str
    size: int
    grid: int
    cell: int
    colours: int  # of COLOURS
    shapes: int  # of SHAPES
    papers: int  # of PAPERS
    shape_count: tuple[int, int]
    most: int  # the highest answer to "how many"
    numbers: tuple[int, int]  # number plates per image
    digits: tuple[int, int]  # digits on a number plate
    words: tuple[int, int]  # word plates per image
    letters: tuple[int, int]  # letters on a word plate
    box: tuple[int, int]  # width and height of one character on its plate, in font dots
    snap: int  # pixels between two possible positions in a cell

    @property
    def margin(self) -> int:
        return (self.size - self.grid * self.cell) // 2

    @property
    def colour_names(self) -> tuple[str, ...]:
        return tuple(COLOURS)[: self.colours]

    @property
    def shape_names(self) -> tuple[str, ...]:
        return SHAPES[: self.shapes]

    @property
    def word_list(self) -> tuple[str, ...]:
        return words_between(*self.letters)


# `tiny` puts each character on one patch of 8 pixels; from `small` on nothing is aligned to a patch.
LEVELS = {
    level.name: level
    for level in (
        Level("tiny", 96, 3, 32, 5, 4, 1, (3, 5), 4, (1, 2), (3, 3), (1, 2), (3, 3), box=(8, 9), snap=8),
        Level("small", 128, 4, 32, 6, 6, 3, (4, 8), 5, (1, 3), (3, 3), (1, 3), (3, 4), box=(7, 9), snap=2),
        Level("medium", 224, 6, 36, 8, 8, 5, (8, 14), 6, (2, 5), (3, 4), (2, 4), (4, 5), box=(7, 9), snap=1),
        Level("hard", 336, 6, 56, 8, 10, 5, (12, 18), 8, (4, 7), (3, 6), (4, 7), (5, 7), box=(7, 9), snap=1),
    )
}


def level_of(difficulty: str) -> Level:
    if difficulty not in LEVELS:
        raise ValueError(f"difficulty {difficulty!r} is unknown: choose one of {', '.join(LEVELS)}")
    return LEVELS[difficulty]
