"""Which rectangle of the user's own image each visual token shows.

The grid of tokens comes from the family's `tiles`, as the methods use it; the family's `geometry` puts it on the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..reduction.batch_layout import BatchLayout, to_cpu_in_one_copy
from .families import ImageInfo, Tile, TokenPlace, UnknownGridError, families, find_family
from .image_grids import ImageGrids
from .structure import ModelParts, find_parts

ImageOrFrames = Image.Image | Sequence[Image.Image]  # a video is its frames


def supports_video(model_type: str) -> bool:
    """Whether it is known what the tokens of a video show."""
    return find_family(model_type).video_geometry


def locate_tokens(
    model: Any, processor: Any, inputs: Mapping[str, Any], images: Sequence[Sequence[ImageOrFrames]]
) -> list[list[TokenPlace]]:
    """The place of each visual token of each row, in the order of the prompt. inputs: of the model; images: those of
    each row, as the processor was given them. Raises `UnknownGridError` where the places are not known."""
    parts = find_parts(model)
    if parts.family.geometry is None:
        raise _unknown_places(parts.top.config.model_type)
    host = to_cpu_in_one_copy({name: inputs.get(name) for name in ("input_ids", "attention_mask", *parts.family.reads)})
    batch = BatchLayout.of(host["input_ids"], parts.visual_ids, host["attention_mask"])
    rows = ImageGrids(parts, host, None).of(batch)
    if len(rows) != len(images):
        raise ValueError(f"images of {len(images)} samples were given for a batch of {len(rows)}")
    return [_locate_row(parts, processor, *row) for row in zip(rows, images, strict=True)]


def _unknown_places(model_type: str) -> UnknownGridError:
    known = [name for family in families() if family.geometry for name in family.model_types]
    return UnknownGridError(
        f"where the visual tokens of model_type {model_type!r} are on an image is not known; "
        f"it is known for {', '.join(known)}"
    )


def _locate_row(
    parts: ModelParts, processor: Any, grids: list[list[Tile]], images: Sequence[ImageOrFrames]
) -> list[TokenPlace]:
    if len(grids) != len(images):
        raise UnknownGridError(f"{len(images)} images were given, but the prompt has {len(grids)}")
    assert parts.family.geometry is not None
    found: list[TokenPlace] = []
    for number, (tiles, image) in enumerate(zip(grids, images, strict=True)):
        video = not isinstance(image, Image.Image)
        size = image.size if isinstance(image, Image.Image) else image[0].size
        info = ImageInfo(parts.top.config, processor.image_processor, size, tiles, len(images) == 1, video)
        token_grids = parts.family.geometry(info)
        if [grid.shape() for grid in token_grids] != list(tiles):
            raise UnknownGridError(
                f"image {number + 1} of {size} gives grids of {[g.shape() for g in token_grids]}, "
                f"but its tokens are {tiles}"
            )
        found += [place for grid in token_grids for place in grid.places(number, size)]
    return found
