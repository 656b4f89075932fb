"""Pages of text: a large one to measure on, and small ones with questions that the tiny base can answer."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
from PIL import Image

from data.scenes.drawing import boxed
from data.scenes.questions import Question
from data.scenes.rng import PortableRandom
from data.scenes.scene import Item, Scene, scene
from data.scenes.templates import ask
from data.scenes.vocabulary import words_between

PAPER, INK = (255, 255, 255), (24, 24, 28)
BOX = (6, 7)  # width and height of a character in font dots
MOST_LINES = 9  # of a paragraph


def draw_page(width: int, height: int, seed: int = 0, dot: int = 2) -> Image.Image:
    """Paragraphs of words, ragged on the right, on white paper with margins. dot: pixels of a font dot. Lines are 24
    pixels apart where a dot has two: their places do not follow the patches of any model."""
    rng, words = PortableRandom(f"page-{seed}"), words_between(3, 7)
    page = Image.new("RGB", (width, height), PAPER)
    margin, step = width // 12, 12 * dot
    columns = (width - 2 * margin) // (BOX[0] * dot)
    top = margin
    while top + step <= height - margin:
        for _ in range(rng.between(3, MOST_LINES)):
            _write_line(page, margin, top, rng.sample(words, columns // 4), columns, dot)
            top += step
            if top + step > height - margin:
                return page
        if rng.coin():  # the last line of a paragraph
            _write_line(page, margin, top, rng.sample(words, 4), columns // 3, dot)
            top += step
        top += 2 * step
    return page


def _write_line(page: Image.Image, left: int, top: int, words: list[str], columns: int, dot: int) -> None:
    line = ""
    for word in words:
        if len(line) + len(word) > columns:
            break
        line += word + " "
    for place, character in enumerate(line):
        if character != " ":
            page.paste(INK, (left + place * BOX[0] * dot, top), Image.fromarray(boxed(character, dot, BOX)))


def page_scene(seed: int, split: str, index: int) -> Scene:
    """The plates of a tiny scene without its shapes, and of other scenes, as many as there are colours: each of another
    colour, in cells of one image. No character occurs twice on a plate: in a tiny scene each fills one patch, so that
    equal ones would have equal pixels, which on a page are those of blank paper."""
    first = scene(seed, split, index, "tiny")
    rng, level = PortableRandom(f"page-{seed}-{split}-{index}"), first.level
    texts: list[Item] = []
    for more_seed in count(seed + 1):
        if len(texts) >= level.colours:
            break
        more = scene(more_seed, split, index, "tiny").plates
        new = [plate for plate in more if plate.text not in {each.text for each in texts}]
        texts += [plate for plate in new if len(set(plate.text)) == len(plate.text)]
    cells = rng.sample(range(level.grid**2), level.colours)
    plates = []
    for plate, colour, cell in zip(texts, level.colour_names, cells, strict=False):
        row, column = divmod(cell, level.grid)
        moved = (column - plate.column) * level.cell, (row - plate.row) * level.cell
        plates.append(replace(plate, row=row, column=column, colour=colour, x=plate.x + moved[0], y=plate.y + moved[1]))
    return replace(first, items=tuple(plates), focus="")


def page_questions(page: Scene) -> list[Question]:
    """What is written on each plate."""
    return [Question("plate", ask("plate", colour=plate.colour), plate.text) for plate in page.plates]


def repeated_share(image: Image.Image, patch: int) -> float:
    """The share of patches whose pixels repeat those of an earlier one."""
    pixels = np.asarray(image)
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    cut = pixels[: rows * patch, : columns * patch].reshape(rows, patch, columns, patch, 3).transpose(0, 2, 1, 3, 4)
    return 1 - len(np.unique(cut.reshape(rows * columns, -1), axis=0)) / (rows * columns)
