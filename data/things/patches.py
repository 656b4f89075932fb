"""What each patch of an image shows: the labels on which the projector is trained."""

from __future__ import annotations

import numpy as np

from data.things.drawing import SIZE, text_box, thing_box
from data.things.scene import ThingScene

BACKGROUND = ""


def patch_words(scene: ThingScene, patch: int) -> np.ndarray:
    """[rows, columns] of the name of the thing or the text that is at the middle of each patch, or BACKGROUND."""
    middles = np.arange(SIZE // patch) * patch + patch // 2
    words = np.full((len(middles), len(middles)), BACKGROUND, dtype=object)
    for cell in scene.cells:
        parts = [(cell.thing.name, thing_box(scene, cell))] if cell.thing else []
        parts += [(cell.text, text_box(scene, cell))] if cell.text else []
        for word, (left, top, right, bottom) in parts:
            rows = (middles >= top) & (middles < bottom)
            columns = (middles >= left) & (middles < right)
            words[np.ix_(rows, columns)] = word
    return words
