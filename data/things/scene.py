"""The content of an image, decided before anything is drawn: a grid of things and notes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import count

from data.scenes.rng import PortableRandom
from data.things.catalogue import Thing, things

# The quarters of all possible scenes that a split may use, by the hash of the scene: no scene, of any seed, is in two
# splits. `unseen` shows things that are in no image of the other splits.
SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1), "validation": (2,), "test": (3,), "unseen": (3,)}
ROWS = 3
WIDE = 4  # one scene out of so many has a grid of four columns, the others of three
MOST_IN_NARROW, MOST = 9, 12

LABELS = (
    "SALE", "NEW", "HOT", "COLD", "OPEN", "FREE", "SOLD", "BIG", "LAST", "BEST", "GIFT", "LOST", "RENT", "TOY", "MINE",
    "FRESH",
)  # fmt: skip
NOTES = (
    "CLOSED TODAY", "KEEP OUT", "BACK SOON", "NO ENTRY", "WET PAINT", "FOR SALE", "WELCOME HOME", "QUIET PLEASE",
    "PUSH HARD", "PULL HERE", "EXIT LEFT", "THANK YOU",
)  # fmt: skip
PRICES = tuple(f"${dollars}" for dollars in range(1, 21))


@dataclass(frozen=True)
class Cell:
    """What is in one cell of the grid: a thing, perhaps with a label or price under it, or a note."""

    row: int
    column: int
    thing: Thing | None  # None: a note
    text: str = ""
    scale: int = 100  # of the thing, percent of its largest size
    turn: int = 0  # degrees
    mirrored: bool = False
    across: int = 50  # where it is in the space that the cell leaves, percent
    down: int = 50
    look: int = 0  # font and colours of the text

    @property
    def is_price(self) -> bool:
        return self.text.startswith("$")


@dataclass(frozen=True)
class ThingScene:
    seed: int
    split: str
    index: int
    columns: int
    cells: tuple[Cell, ...]
    focus: Thing  # what `count` asks for first; its number in the scene is chosen
    absent: Thing  # in no cell
    background: int = 0

    @property
    def things(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.thing]

    @property
    def notes(self) -> list[Cell]:
        return [cell for cell in self.cells if not cell.thing]

    def at(self, row: int, column: int) -> Cell | None:
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)


def describe(scene: ThingScene) -> str:
    """The scene in words, one line per cell; equal for two scenes that differ only in pixels."""
    lines = (f"{c.row} {c.column} {c.thing.name if c.thing else 'note'} {c.text}".strip() for c in scene.cells)
    return "\n".join([str(scene.columns), *lines])


def fingerprint(scene: ThingScene) -> str:
    return hashlib.sha256(describe(scene).encode()).hexdigest()


def scene(seed: int, split: str, index: int) -> ThingScene:
    """The `index`-th scene of a split: the same everywhere, and in no other split."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    shown = [thing for thing in things() if thing.seen == (split != "unseen")]
    for attempt in count():
        rng = PortableRandom(f"things-{seed}-{split}-{index}-{attempt}")
        made = _fill(
            ThingScene(seed, split, index, 4 if rng.below(WIDE) == 0 else 3, (), shown[0], shown[0]), shown, rng
        )
        if int(fingerprint(made)[:8], 16) % 4 in SPLITS[split]:
            return made
    raise AssertionError("unreachable: count() does not end")


def _fill(empty: ThingScene, shown: list[Thing], rng: PortableRandom) -> ThingScene:
    """4 to 9 cells of a narrow grid, 7 to 12 of a wide one. One thing may occur several times; one may be a note."""
    filled = rng.between(4, MOST_IN_NARROW) if empty.columns == 3 else rng.between(7, MOST)
    notes = rng.below(2)
    wanted = filled - notes
    often = rng.between(1, min(4, wanted - 1)) if rng.coin() else 1
    kinds = rng.sample(shown, wanted - often + 2)
    focus, absent, others = kinds[0], kinds[1], kinds[2:]
    contents = [(focus, "")] * often + [(thing, "") for thing in others]
    # Texts are attached to things that occur once, so that a question can name them.
    first = 0 if often == 1 else often
    texts = rng.sample(LABELS, rng.below(3)) + rng.sample(PRICES, rng.below(3))
    for place, text in zip(range(first, len(contents)), texts, strict=False):
        contents[place] = (contents[place][0], text)
    drawn: list[tuple[Thing | None, str]] = [*contents, *[(None, rng.choice(NOTES))] * notes]
    places = rng.sample(range(ROWS * empty.columns), len(drawn))
    cells = [
        _place(divmod(place, empty.columns), thing, text, rng)
        for place, (thing, text) in zip(places, drawn, strict=True)
    ]
    cells.sort(key=lambda cell: (cell.row, cell.column))
    return replace(empty, cells=tuple(cells), focus=focus, absent=absent, background=rng.below(1 << 30))


def _place(place: tuple[int, int], thing: Thing | None, text: str, rng: PortableRandom) -> Cell:
    return Cell(
        *place,
        thing,
        text,
        scale=rng.between(75, 100),
        turn=rng.between(-12, 12),
        mirrored=rng.coin(),
        across=rng.below(101),
        down=rng.below(101),
        look=rng.below(1 << 20),
    )
