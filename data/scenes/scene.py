"""What is in a picture, decided before anything is drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count

from data.scenes.dice import Dice
from data.scenes.levels import Level, level_of

# Which quarter of all possible scenes a split may use, by the hash of the scene: no scene, of any
# seed, can ever be in two splits.
SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1), "validation": (2,), "test": (3,)}


@dataclass(frozen=True)
class Item:
    """A shape, or a plate with a number or a word, somewhere inside the cell of `row` and `column`."""

    row: int
    column: int
    colour: str
    what: str  # a shape's name, or "plate"
    text: str = ""
    x: int = 0
    y: int = 0
    size: int = 0  # of a shape: its width in pixels; of a plate: how many pixels to a font dot


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    index: int
    difficulty: str
    items: tuple[Item, ...]
    focus: str  # the shape or colour of which this scene was given a chosen number: what `count` asks for
    paper: int = 0

    @property
    def level(self) -> Level:
        return level_of(self.difficulty)

    @property
    def shapes(self) -> list[Item]:
        return [item for item in self.items if not item.text]

    @property
    def plates(self) -> list[Item]:
        return [item for item in self.items if item.text]


def describe(scene: Scene) -> str:
    """The scene in words, one line an item; two scenes that differ in pixels only read the same."""
    return "\n".join(f"{i.row} {i.column} {i.colour} {i.what} {i.text}".strip() for i in scene.items)


def fingerprint(scene: Scene) -> str:
    return hashlib.sha256(f"{scene.difficulty}\n{describe(scene)}".encode()).hexdigest()


def scene(seed: int, split: str, index: int, difficulty: str) -> Scene:
    """The `index`-th scene of a split: the same everywhere, and in no other split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known: choose one of {', '.join(SPLITS)}")
    level = level_of(difficulty)
    for attempt in count():
        dice = Dice(f"{seed}-{split}-{index}-{difficulty}-{attempt}")
        items, focus = _items(level, dice)
        paper = dice.below(level.papers)
        drawn = Scene(seed, split, index, difficulty, items, focus, paper)
        if int(fingerprint(drawn)[:8], 16) % 4 in SPLITS[split]:
            return drawn
    raise AssertionError("unreachable: count() does not end")


def _items(level: Level, dice: Dice) -> tuple[tuple[Item, ...], str]:
    looks, focus = _shape_looks(level, dice)
    looks += [(dice.pick(level.colour_names), "plate", text) for text in _texts(level, dice)]
    cells = dice.some(range(level.grid**2), len(looks))
    placed = [
        _place(level, dice, cell, colour, what, text) for cell, (colour, what, text) in zip(cells, looks, strict=True)
    ]
    return tuple(sorted(placed, key=lambda item: (item.row, item.column))), focus


def _shape_looks(level: Level, dice: Dice) -> tuple[list[tuple[str, str, str]], str]:
    """Colours and shapes such that `focus` occurs exactly n times, every n from 1 to `most` equally often.

    One colour and one shape stay out of the scene, so that there is always something to count none of.
    """
    colours = dice.some(level.colour_names, level.colours - 1)
    shapes = dice.some(level.shape_names, level.shapes - 1)
    often = dice.between(1, level.most)
    total = max(often, dice.between(*level.shape_count))
    by_colour = dice.coin()
    focus, others = (colours[0], colours[1:]) if by_colour else (shapes[0], shapes[1:])
    looks = []
    for place in range(total):
        chosen = focus if place < often else dice.pick(others)
        free = dice.pick(shapes if by_colour else colours)
        looks.append((chosen, free, "") if by_colour else (free, chosen, ""))
    return looks, focus


def _texts(level: Level, dice: Dice) -> list[str]:
    """What the plates say: no text twice in a picture."""
    words = dice.some(level.word_list, dice.between(*level.words))
    numbers: list[str] = []
    for _ in range(dice.between(*level.numbers)):
        digits = dice.between(*level.digits)
        number = str(dice.between(10 ** (digits - 1), 10**digits - 1))
        while number in numbers:
            number = str(dice.between(10 ** (digits - 1), 10**digits - 1))
        numbers.append(number)
    return numbers + words


def _place(level: Level, dice: Dice, cell: int, colour: str, what: str, text: str) -> Item:
    """Somewhere in the cell, wholly inside it, on a multiple of `snap` pixels."""
    row, column = divmod(cell, level.grid)
    if text:
        size = dice.between(1, max(1, level.cell // plate_extent(level, text, 1)[0]))
        width, height = plate_extent(level, text, size)
    else:
        size = width = height = dice.between(level.cell * 5 // 8, level.cell * 7 // 8)
    x, y = (level.snap * dice.between(0, (level.cell - extent) // level.snap) for extent in (width, height))
    corner_x, corner_y = (level.margin + at * level.cell for at in (column, row))
    return Item(row, column, colour, what, text, corner_x + x, corner_y + y, size)


def plate_extent(level: Level, text: str, scale: int) -> tuple[int, int]:
    """Width and height of a plate in pixels."""
    width, height = level.box
    return len(text) * width * scale, height * scale
