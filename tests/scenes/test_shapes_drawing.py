"""The images of the drawn set show the scene, and the same seed gives the same pixels on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from data import shapes
from data.scenes.difficulty import COLOURS, PAPERS
from data.scenes.drawing import shape_mask
from data.scenes.font import GLYPHS
from data.shapes import LABELS, LEVELS, Scene

DIFFICULTIES = list(LEVELS)


def scenes(difficulty: str, count: int) -> list[Scene]:
    return [shapes.scene(0, "train", index, difficulty) for index in range(count)]


# Digests of the first images and questions, which must be the same on every machine. A change of them makes a new set:
# increase VERSION in data/scenes/writer.py, and update them.
SAME_EVERYWHERE = {
    "tiny": "260a8f3ce02077002ff27f32b2a6be060bd3349a858be66d32be898c22b42001",
    "small": "9371db078861ecac34018490c398694e81ee90a8b9209d19b4b7a9a0fadea50c",
    "medium": "6a77b69a12f8e745ac961ae989a39f0eb157160c109520ffc7c22852b0e7be64",
    "hard": "f3380798c835bca893090eb00d44aeebf794c49b0a38ece4b6f4ba0e5d7fbc77",
}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_seed_gives_the_same_pixels_and_questions_on_every_machine(difficulty: str) -> None:
    digest = hashlib.sha256()
    for index in range(12):
        scene = shapes.scene(5, "test", index, difficulty)
        digest.update(shapes.draw(scene).tobytes())
        digest.update(repr([(q.kind, q.question, q.answer) for q in shapes.questions(scene)]).encode())
    assert digest.hexdigest() == SAME_EVERYWHERE[difficulty]


def cell_pixels(scene: Scene, row: int, column: int) -> np.ndarray:
    level = scene.level
    x, y = level.margin + column * level.cell, level.margin + row * level.cell
    return np.asarray(shapes.draw(scene))[y : y + level.cell, x : x + level.cell]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_each_cell_shows_its_item_and_nothing_else(difficulty: str) -> None:
    for scene in scenes(difficulty, 15):
        paper = PAPERS[scene.paper]
        items = {(item.row, item.column): item for item in scene.items}
        assert len(items) == len(scene.items), "two items in one cell"
        for row in range(scene.level.grid):
            for column in range(scene.level.grid):
                found = {tuple(p) for p in cell_pixels(scene, row, column).reshape(-1, 3).tolist()} - {paper}
                item = items.get((row, column))
                if item is None:
                    assert not found
                elif item.text:
                    assert found - {(0, 0, 0), (255, 255, 255)} == {COLOURS[item.colour]}
                else:
                    assert found == {COLOURS[item.colour]}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_plates_can_be_read_from_the_pixels(difficulty: str) -> None:
    for scene in scenes(difficulty, 15):
        for item in scene.plates:
            pixels = cell_pixels(scene, item.row, item.column)
            plate = (pixels != PAPERS[scene.paper]).any(axis=-1)
            (top, bottom), (left, right) = (np.nonzero(plate.any(axis=axis))[0][[0, -1]] for axis in (1, 0))
            pixels = pixels[top : bottom + 1, left : right + 1]
            ink = (pixels != COLOURS[item.colour]).any(axis=-1)
            assert read(ink, len(item.text), scene.level.box) == item.text


def read(ink: np.ndarray, length: int, box: tuple[int, int]) -> str:
    """Recognise the characters of a plate: the glyphs with the same dots."""
    scale = ink.shape[0] // box[1]
    assert ink.shape == (box[1] * scale, box[0] * scale * length)
    text = ""
    for part in np.split(ink[::scale, ::scale], length, axis=1):
        dots = part[1:8, (box[0] - 5) // 2 :][:, :5]
        rows = tuple("".join(".#"[dot] for dot in row.astype(int)) for row in dots)
        [character] = [known for known, glyph in GLYPHS.items() if glyph == rows]
        text += character
    return text


def test_shapes_and_characters_look_different() -> None:
    assert len(set(GLYPHS.values())) == len(GLYPHS) == 36
    for size in (20, 31, 49):
        masks = [np.asarray(shape_mask(name, size)) > 0 for name in LEVELS["hard"].shape_names]
        assert all((a ^ b).sum() * 12 > size * size for i, a in enumerate(masks) for b in masks[:i])


def test_labels_of_aligned_patches_spell_every_plate_and_find_every_shape() -> None:
    for scene in scenes("tiny", 40):
        labels = shapes.patch_labels(scene, 8)  # [12, 12, 3]
        assert labels.shape == (12, 12, 3)
        for item in scene.items:
            cell = labels[item.row * 4 : item.row * 4 + 4, item.column * 4 : item.column * 4 + 4].reshape(-1, 3)
            what, colour, character = (set(cell[:, axis].tolist()) for axis in range(3))
            assert what == {0, LABELS["what"].index(item.what)}
            assert colour == {0, LABELS["colour"].index(item.colour)}
            spelled = "".join(LABELS["character"][n] for n in cell[:, 2] if n)
            assert spelled == item.text and (character == {0}) == (not item.text)


def test_patch_is_labelled_with_what_covers_most_of_it() -> None:
    scene = Scene(0, "train", 0, "tiny", (shapes.Item(0, 0, "red", "square", x=0, y=0, size=20),), "red")
    image = np.asarray(shapes.draw(scene))
    red = (image == COLOURS["red"]).all(axis=-1).reshape(12, 8, 12, 8).sum(axis=(1, 3))
    labels = shapes.patch_labels(scene, 8)
    assert ((labels[:, :, 1] == LABELS["colour"].index("red")) == (red * 4 >= 64)).all()
