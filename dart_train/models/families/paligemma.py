"""PaliGemma: every image is one square of the encoder's size, without a crop.

All tokens of the prompt attend to each other in both directions. For fewer pixels the encoder takes a smaller square.
"""

from __future__ import annotations

import math
from typing import Any

from ...reduction.budget import Keep
from .family import Family, register
from .llava import SquareResizer, interpolate_position_embeddings, square_geometry, square_tiles
from .resizer import ResizedImage


class FixedLengthResizer(SquareResizer):
    """Of a processor that writes a fixed number of placeholders, in its attribute `length`, for every image."""

    length = "image_seq_length"

    @property
    def patch(self) -> int:
        patches = math.isqrt(getattr(self.processor, self.length))
        return int(self.image_processor.size["height"]) // patches

    def full(self, height: int, width: int) -> ResizedImage:
        return self._square(math.isqrt(getattr(self.processor, self.length)))

    def _square(self, patches: int) -> ResizedImage:
        return ResizedImage(patches * self.patch, patches * self.patch, patches**2)

    def processor_settings(self, keep: Keep) -> dict[str, Any]:
        return {self.length: self.size_for(keep, 1, 1).tokens}


PALIGEMMA = register(
    Family(
        name="PaliGemma",
        model_types=("paligemma",),
        tiles=square_tiles,
        geometry=square_geometry,
        processors=("PaliGemmaProcessor",),
        resizer=FixedLengthResizer,
        accept_smaller_images=interpolate_position_embeddings,
        projectors=frozenset({"multi_modal_projector"}),
        bidirectional_images=True,
    )
)
