"""The content of an image, decided before anything is drawn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import count

from data.scenes.difficulty import Level, level_of
from data.scenes.rng import PortableRandom

# The quarters of all possible scenes that a split may use, by the hash of the scene: no scene, of any seed, is in two
# splits.
SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1), "validation": (2,), "test": (3,)}


@dataclass(frozen=True)
class Item:
    """A shape, or a plate with a number or a word, inside the cell of `row` and `column`."""

    row: int
    column: int
    colour: str
    what: str  # a shape's name, or "plate"
    text: str = ""
    x: int = 0
    y: int = 0
    size: int = 0  # of a shape: its width in pixels; of a plate: pixels per font dot


@dataclass(frozen=True)
class Scene:
    seed: int
    split: str
    index: int
    difficulty: str
    items: tuple[Item, ...]
    focus: str  # the shape or colour that `count` asks for; its number in the scene is chosen
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
    """The scene in words, one line per item; equal for two scenes that differ only in pixels."""
    return "\n".join(f"{i.row} {i.column} {i.colour} {i.what} {i.text}".strip() for i in scene.items)


def fingerprint(scene: Scene) -> str:
    return hashlib.sha256(f"{scene.difficulty}\n{describe(scene)}".encode()).hexdigest()


def scene(seed: int, split: str, index: int, difficulty: str) -> Scene:
    """The `index`-th scene of a split: the same everywhere, and in no other split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    level = level_of(difficulty)
    for attempt in count():
        rng = PortableRandom(f"{seed}-{split}-{index}-{difficulty}-{attempt}")
        items, focus = _items(level, rng)
        paper = rng.below(level.papers)
        drawn = Scene(seed, split, index, difficulty, items, focus, paper)
        if int(fingerprint(drawn)[:8], 16) % 4 in SPLITS[split]:
            return drawn
    raise AssertionError("unreachable: count() does not end")


def _items(level: Level, rng: PortableRandom) -> tuple[tuple[Item, ...], str]:
    looks, focus = _shape_looks(level, rng)
    looks += [(rng.choice(level.colour_names), "plate", text) for text in _texts(level, rng)]
    cells = rng.sample(range(level.grid**2), len(looks))
    placed = [
        _place(level, rng, cell, colour, what, text) for cell, (colour, what, text) in zip(cells, looks, strict=True)
    ]
    return tuple(sorted(placed, key=lambda item: (item.row, item.column))), focus


def _shape_looks(level: Level, rng: PortableRandom) -> tuple[list[tuple[str, str, str]], str]:
    """Colours and shapes such that `focus` occurs exactly n times, every n from 1 to `most` equally often.

    One colour and one shape are left out of the scene, so that there is always something that occurs zero times.
    """
    colours = rng.sample(level.colour_names, level.colours - 1)
    shapes = rng.sample(level.shape_names, level.shapes - 1)
    often = rng.between(1, level.most)
    total = max(often, rng.between(*level.shape_count))
    by_colour = rng.coin()
    focus, others = (colours[0], colours[1:]) if by_colour else (shapes[0], shapes[1:])
    looks = []
    for place in range(total):
        chosen = focus if place < often else rng.choice(others)
        free = rng.choice(shapes if by_colour else colours)
        looks.append((chosen, free, "") if by_colour else (free, chosen, ""))
    return looks, focus


def _texts(level: Level, rng: PortableRandom) -> list[str]:
    """The texts of the plates; no text twice in an image."""
    words = rng.sample(level.word_list, rng.between(*level.words))
    numbers: list[str] = []
    for _ in range(rng.between(*level.numbers)):
        digits = rng.between(*level.digits)
        number = str(rng.between(10 ** (digits - 1), 10**digits - 1))
        while number in numbers:
            number = str(rng.between(10 ** (digits - 1), 10**digits - 1))
        numbers.append(number)
    return numbers + words


def _place(level: Level, rng: PortableRandom, cell: int, colour: str, what: str, text: str) -> Item:
    """An item at a random position inside the cell, on a multiple of `snap` pixels."""
    row, column = divmod(cell, level.grid)
    if text:
        size = rng.between(1, max(1, level.cell // plate_extent(level, text, 1)[0]))
        width, height = plate_extent(level, text, size)
    else:
        size = width = height = rng.between(level.cell * 5 // 8, level.cell * 7 // 8)
    x, y = (level.snap * rng.between(0, (level.cell - extent) // level.snap) for extent in (width, height))
    corner_x, corner_y = (level.margin + at * level.cell for at in (column, row))
    return Item(row, column, colour, what, text, corner_x + x, corner_y + y, size)


def plate_extent(level: Level, text: str, scale: int) -> tuple[int, int]:
    """Width and height of a plate in pixels."""
    width, height = level.box
    return len(text) * width * scale, height * scale
