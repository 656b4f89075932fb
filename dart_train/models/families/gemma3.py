"""Gemma 3: every image is one square that the encoder's projector pools to a fixed number of tokens.

The tokens of an image attend to each other in both directions. The crops of pan-and-scan are images of their own.
The pooling takes one size of the encoder's grid only, so fewer pixels give no fewer tokens.
"""

from __future__ import annotations

import math
from typing import Any

from .family import Family, Inputs, Rows, count_tokens, register
from .geometry import Tile
from .llava import square_geometry


def pooled_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    side = math.isqrt(config.mm_tokens_per_image)
    return [[(side, side)]] * (count_tokens(rows) // side**2)


GEMMA3 = register(
    Family(
        name="Gemma 3",
        model_types=("gemma3",),
        tiles=pooled_tiles,
        geometry=square_geometry,
        processors=("Gemma3Processor",),
        no_resizer="its projector pools the encoder's grid of one size only",
        projectors=frozenset({"multi_modal_projector"}),
        bidirectional_images=True,
    )
)
