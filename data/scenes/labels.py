"""A scene for training in stages: labels for every patch and the scene as symbols; and the vocabulary."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.scenes.difficulty import COLOURS, SHAPES, level_of
from data.scenes.drawing import character_boxes, shape_mask
from data.scenes.font import DIGITS, LETTERS
from data.scenes.scene import Scene, plate_extent
from data.scenes.templates import SIDES, TEMPLATES, YES_NO, places, plural

# The meaning of the three numbers that `patch_labels` gives a patch; 0 is always "nothing".
LABELS: dict[str, tuple[str, ...]] = {
    "what": ("nothing", "plate", *SHAPES),
    "colour": ("nothing", *COLOURS),
    "character": ("nothing", *DIGITS, *LETTERS),
}
Box = tuple[int, int] | tuple[int, int, int, int]
MIN_COVERAGE = 4  # a label must cover at least 1 / MIN_COVERAGE of a patch


def patch_labels(scene: Scene, patch: int) -> NDArray[np.int64]:
    """[rows, columns, 3]: the most frequent labels of each patch, as indices into LABELS. patch: its side in pixels."""
    if patch < 1 or scene.level.size % patch:
        raise ValueError(f"patch: got {patch}, which does not divide images of {scene.level.size} pixels")
    maps = _label_maps(scene)
    return np.stack([_most_frequent(np.asarray(maps[name]), patch, len(LABELS[name])) for name in LABELS], axis=-1)


def _label_maps(scene: Scene) -> dict[str, Image.Image]:
    """For each kind of label an image whose grey values are label numbers."""
    level = scene.level
    maps = {name: Image.new("L", (level.size, level.size)) for name in LABELS}

    def stamp(name: str, value: str, box: Box, mask: Image.Image | None = None) -> None:
        maps[name].paste(LABELS[name].index(value), box, mask)

    for item in scene.items:
        at: Box = (item.x, item.y)
        mask = None if item.text else shape_mask(item.what, item.size)
        if item.text:
            width, height = plate_extent(level, item.text, item.size)
            at = (item.x, item.y, item.x + width, item.y + height)
        stamp("what", item.what, at, mask)
        stamp("colour", item.colour, at, mask)
        for character, box in character_boxes(level, item):
            stamp("character", character, box)
    return maps


def _most_frequent(values: NDArray[np.uint8], patch: int, kinds: int) -> NDArray[np.int64]:
    """[rows, columns]: the most frequent number other than 0 in each patch, 0 where it is too rare."""
    across = values.shape[1] // patch
    rows, columns = np.indices(values.shape) // patch
    cells = rows * across + columns
    often = np.bincount((cells * kinds + values).ravel(), minlength=across * across * kinds)
    often = often.reshape(across, across, kinds)[:, :, 1:]
    return np.where(often.max(axis=-1) * MIN_COVERAGE >= patch * patch, often.argmax(axis=-1) + 1, 0)


def symbols(scene: Scene) -> list[str]:
    """The scene as a list: place, colour and shape of each item; for a plate also its characters."""
    listed = []
    for item in scene.items:
        listed += [f"row{item.row}", f"column{item.column}", item.colour, item.what, *item.text]
    return listed


def symbol_vocabulary(difficulty: str) -> list[str]:
    """Every symbol that `symbols` can use."""
    level = level_of(difficulty)
    at = [f"{axis}{place}" for axis in ("row", "column") for place in range(level.grid)]
    return [*at, *level.colour_names, "plate", *level.shape_names, *DIGITS, *_letters(difficulty)]


def split_words(text: str) -> list[str]:
    """Text as entries of the vocabulary: words, the characters of plates, punctuation marks."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]|[0-9]|[^\sA-Za-z0-9]", text)


def _letters(difficulty: str) -> list[str]:
    return sorted({letter for word in level_of(difficulty).word_list for letter in word})


@cache
def _vocabulary(difficulty: str) -> tuple[str, ...]:
    level = level_of(difficulty)
    wordings = [re.sub(r"{.*?}", "", template) for template in TEMPLATES.values()]
    names = [*level.colour_names, *level.shape_names, *map(plural, level.shape_names)]
    answers = [*SIDES, *YES_NO, *(name for row in places(level) for name in row)]
    words = split_words(" ".join([*wordings, *names, *answers]))
    return tuple(dict.fromkeys([*words, *DIGITS, *_letters(difficulty)]))


def vocabulary(difficulty: str) -> list[str]:
    """Every word, character and mark (by `split_words`) that questions and answers can contain."""
    return list(_vocabulary(difficulty))
