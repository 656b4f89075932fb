"""The pictures of the drawn set: they show the scene, and are the same pixels and bytes everywhere."""

from __future__ import annotations

import hashlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import shapes
from data.scenes.drawing import shape_mask
from data.scenes.font import GLYPHS
from data.scenes.levels import COLOURS, PAPERS
from data.scenes.png import deflate, png
from data.shapes import LABELS, LEVELS, Scene

DIFFICULTIES = list(LEVELS)


def scenes(difficulty: str, count: int) -> list[Scene]:
    return [shapes.scene(0, "train", index, difficulty) for index in range(count)]


# Pixels of the first pictures and their questions, as they must come out on every machine for good.
# A change that alters them is a new set: raise VERSION in data/scenes/writing.py, and change these.
SAME_EVERYWHERE = {
    "tiny": "7889ecede8cc289c0f43266e6ca4b21afa668fd1382bd46a12e2500efeef3ce7",
    "small": "968c90f22e1711595cf628d7f729ae4514b4e94b8796d14924b7743f04d14911",
    "medium": "e5690d2c54933fb040cf6e493f7d4c1dbe7d8eaa9b7ff086d978df92a077ec76",
    "hard": "f27cb001153e4f2fd826154f2b4cf9f4e5d80030c01e962688868bd1db2ecf2e",
}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_seed_gives_the_same_pixels_and_words_everywhere(difficulty: str) -> None:
    digest = hashlib.sha256()
    for index in range(12):
        scene = shapes.scene(5, "test", index, difficulty)
        picture = shapes.draw(scene)
        digest.update(picture.tobytes() + png(picture))
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
    """Recognise the font in a picture of a plate: the glyph whose dots are the inked ones."""
    scale = ink.shape[0] // box[1]
    assert ink.shape == (box[1] * scale, box[0] * scale * length)
    text = ""
    for part in np.split(ink[::scale, ::scale], length, axis=1):
        dots = part[1:8, (box[0] - 5) // 2 :][:, :5]
        rows = tuple("".join(".#"[dot] for dot in row.astype(int)) for row in dots)
        [character] = [known for known, glyph in GLYPHS.items() if glyph == rows]
        text += character
    return text


def test_shapes_and_characters_are_all_different_to_look_at() -> None:
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


def test_a_patch_is_labelled_with_what_covers_most_of_it() -> None:
    scene = Scene(0, "train", 0, "tiny", (shapes.Item(0, 0, "red", "square", x=0, y=0, size=20),), "red")
    picture = np.asarray(shapes.draw(scene))
    red = (picture == COLOURS["red"]).all(axis=-1).reshape(12, 8, 12, 8).sum(axis=(1, 3))
    labels = shapes.patch_labels(scene, 8)
    assert ((labels[:, :, 1] == LABELS["colour"].index("red")) == (red * 4 >= 64)).all()


@given(st.lists(st.one_of(st.binary(max_size=40), st.integers(1, 1200).map(bytes)), max_size=12).map(b"".join))
@settings(max_examples=150, deadline=None)
def test_our_compressor_is_undone_by_any_other(content: bytes) -> None:
    assert zlib.decompress(deflate(content)) == content


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (50, 64)])
def test_png_files_hold_any_picture(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    flat = np.full_like(noise, 200)
    flat[size[1] // 2 :] = noise[size[1] // 2 :]
    for pixels in (noise, flat):
        opened = Image.open(io.BytesIO(png(Image.fromarray(pixels))))
        assert (opened.mode, opened.size) == ("RGB", size)
        assert (np.asarray(opened) == pixels).all()
