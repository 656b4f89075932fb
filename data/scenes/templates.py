"""The wording of questions and answers."""

from __future__ import annotations

from data.scenes.difficulty import Level
from data.scenes.scene import Item

TEMPLATES = {
    "colour": "What colour is the {shape}?",
    "shape": "Which shape is {colour}?",
    "count_shape": "How many {shapes} are there?",
    "count_colour": "How many {colour} shapes are there?",
    "exists": "Is there a {colour} {shape}?",
    "relation": "Is the {colour} {shape} {side} the {colour2} {shape2}?",
    "position": "Where is the {colour} {shape}?",
    "number": "What number is written?",
    "number_in": "What number is written in the {place}?",
    "word": "What word is written?",
    "word_in": "What word is written in the {place}?",
    "plate": "What is written on the {colour} plate?",
    "holder": "What colour is the plate with {text}?",
    "adjacent_colour": "What colour is the shape directly {side} {text}?",
    "adjacent_shape": "Which shape is directly {side} {text}?",
    "compare_shape": "Are there more {shapes} than {shapes2}?",
    "compare_colour": "Are there more {colour} shapes than {colour2} shapes?",
}
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}  # rows, columns away
QUARTERS = (("top left", "top right"), ("bottom left", "bottom right"))
NINTHS = (
    ("top left", "top middle", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)
YES_NO = ("no", "yes")


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def places(level: Level) -> tuple[tuple[str, ...], ...]:
    """The names of the regions of an image; no border of a region crosses a cell."""
    return NINTHS if level.grid % 3 == 0 else QUARTERS


def place_of(level: Level, item: Item) -> str:
    names = places(level)
    return names[item.row * len(names) // level.grid][item.column * len(names) // level.grid]


def ask(template: str, **slots: str) -> str:
    return TEMPLATES[template].format(**slots)
