"""Images and questions for the engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE_QUESTIONS = ("what is written on the red plate ?", "count red", "shape red left")


def draw(folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> list[Path]:
    """Images of these (width, height), of smooth noise: neighbouring patches are alike, as in photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    return list(_draw(folder, sizes, np.random.default_rng(seed)))


def _draw(folder: Path, sizes: list[tuple[int, int]], random: np.random.Generator) -> Iterator[Path]:
    for number, (width, height) in enumerate(sizes):
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        file = folder / f"{number}.png"
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(file)
        yield file
