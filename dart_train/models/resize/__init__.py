"""Fewer pixels: pictures made so small that the encoder itself gives about the budget's visual tokens.

    processor = fewer_pixels(processor, keep=64)      # then as ever: processor(...), model(**batch)

The baseline that many methods lose to (VTC-Bench). It works before the model: every picture is resized, then
goes through the family's own processor. What a family can reach is set by its encoder; a wish beyond that is
met as nearly as it can be, and `reached` says how nearly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from PIL import Image
from transformers.image_transforms import to_pil_image

from ...reduction.budget import Keep, check_keep
from .families import shrink_of
from .shrink import Shrink, Size

__all__ = ["Size", "fewer_pixels", "reached"]


def fewer_pixels(processor: Any, keep: Keep) -> Any:
    """A processor like the given one, which is left as it is, for pictures of at most `keep` tokens each.

    keep: a number of tokens, or a ratio of what the processor makes of a picture unasked.
    LLaVA-1.5's encoder must interpolate its position embeddings for that: run the model within
    `dart_train.models.interpolate_positions.interpolated_positions(model)`.
    """
    shrink = _of(processor, keep)
    shrunk = copy.copy(processor)
    shrunk.image_processor = _shrinking(shrink, keep)
    return shrunk


def reached(processor: Any, keep: Keep, height: int, width: int) -> Size:
    """The size that a picture of height x width is brought to, and the number of tokens that come of it."""
    return _of(processor, keep).to(keep, height, width)


def _of(processor: Any, keep: Keep) -> Shrink:
    problem = check_keep(keep)
    if problem:
        raise ValueError(problem)
    return shrink_of(processor)


def _shrinking(shrink: Shrink, keep: Keep) -> Any:
    """The image processor, which now looks at smaller pictures."""
    images = copy.copy(shrink.images)
    kind: Any = type(images)

    def preprocess(self: Any, pictures: Any, *args: Any, **kwargs: Any) -> Any:
        smaller = _each(pictures, lambda picture: shrink.resized(picture, keep))
        return kind.preprocess(self, smaller, *args, **kwargs)

    images.__class__ = type(kind.__name__, (kind,), {"preprocess": preprocess})
    for name, value in shrink.settings(keep).items():
        setattr(images, name, value)
    return images


def _each(pictures: Any, change: Callable[[Image.Image], Image.Image]) -> Any:
    """Pictures come alone, in a list, or in a list per sample."""
    if isinstance(pictures, list | tuple):
        return [_each(picture, change) for picture in pictures]
    return change(pictures if isinstance(pictures, Image.Image) else to_pil_image(pictures))
