"""Fewer pixels: images made so small that the encoder itself gives about the budget's visual tokens.

    processor = fewer_pixels(processor, keep=64)      # then as usual: processor(...), model(**batch)

A baseline that many token-dropping methods do not beat (VTC-Bench). It works before the model: every image is resized,
then goes through the family's own processor. What a family can reach is set by its encoder; a budget beyond that is met
as nearly as possible, and `resulting_size` returns how nearly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from transformers.image_transforms import to_pil_image

from ..reduction.budget import Keep, check_keep
from .families import ResizedImage, Resizer, families, family_of_processor, find_family
from .structure import unwrap_model


def fewer_pixels(processor: Any, keep: Keep) -> Any:
    """A copy of the processor for images of at most `keep` tokens each; the given one is not changed.

    keep: a number of tokens, or a ratio of what the processor makes of an image by itself.
    Run the model inside `accept_smaller_images(model)`: some encoders (LLaVA-1.5) must interpolate their position
    embeddings.
    """
    resizer = _checked_resizer(processor, keep)
    smaller = copy.copy(processor)
    smaller.image_processor = _resizing(resizer, keep)
    for name, value in resizer.processor_settings(keep).items():
        setattr(smaller, name, value)
    return smaller


@contextmanager
def accept_smaller_images(model: Any) -> Iterator[None]:
    """Inside, the model takes the images of a `fewer_pixels` processor of its family."""
    top = unwrap_model(model)
    accept = find_family(top.config.model_type).accept_smaller_images
    if accept is None:
        yield
        return
    with accept(top):
        yield


def resulting_size(processor: Any, keep: Keep, height: int, width: int) -> ResizedImage:
    """The size that an image of height x width is resized to, and the number of its tokens."""
    return _checked_resizer(processor, keep).size_for(keep, height, width)


def resizer_for(processor: Any) -> Resizer:
    """Raises ValueError for a processor whose images cannot be made smaller."""
    name, family = type(processor).__name__, family_of_processor(processor)
    if family.resizer is not None:
        return family.resizer(processor)
    if family.no_resizer:
        raise ValueError(f"{name}: fewer pixels give no fewer tokens, {family.no_resizer}; use another method")
    known = [each for family in families() if family.resizer for each in family.processors]
    raise ValueError(f"{name}: how its encoder takes smaller images is not known; expected one of {', '.join(known)}")


def _checked_resizer(processor: Any, keep: Keep) -> Resizer:
    if problem := check_keep(keep):
        raise ValueError(problem)
    return resizer_for(processor)


def _resizing(resizer: Resizer, keep: Keep) -> Any:
    """A copy of the image processor that resizes images first."""
    image_processor = copy.copy(resizer.image_processor)
    kind: Any = type(image_processor)

    def preprocess(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        smaller = _map_images(images, lambda image: resizer.resize(image, keep))
        return kind.preprocess(self, smaller, *args, **kwargs)

    image_processor.__class__ = type(kind.__name__, (kind,), {"preprocess": preprocess})
    for name, value in resizer.settings(keep).items():
        setattr(image_processor, name, value)
    return image_processor


def _map_images(images: Any, change: Callable[[Image.Image], Image.Image]) -> Any:
    """Images come alone, in a list, or in a list per sample."""
    if isinstance(images, list | tuple):
        return [_map_images(image, change) for image in images]
    return change(images if isinstance(images, Image.Image) else to_pil_image(images))
