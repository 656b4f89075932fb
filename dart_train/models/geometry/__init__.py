"""Which rectangle of the user's own picture each visual token sees.

The grid of tokens comes from `dart_train.models.families`, as the methods see it;
here it is laid on the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from ...reduction.batch_layout import BatchLayout, to_cpu_in_one_copy
from ..families import Tile, UnknownGridError
from ..image_grids import ImageGrids
from ..structure import ModelParts, find_parts
from .anyres import anyres
from .box import Box
from .merged import merged
from .sheet import Place, TokenGrid
from .sight import ImageInfo
from .square import square
from .tiled import canvas, split

Picture = Image.Image | Sequence[Image.Image]  # a video is its frames

KINDS: dict[str, Callable[[ImageInfo], list[TokenGrid]]] = {
    "llava": square,
    "gemma3": square,
    "llava_next": anyres,
    "llava_onevision": anyres,
    "internvl": canvas,
    "idefics3": split,
    "smolvlm": split,
    "qwen2_vl": merged,
    "qwen2_5_vl": merged,
    "qwen3_vl": merged,
}


def supports_video(model_type: str) -> bool:
    """Whether it is known what the tokens of a video see."""
    return KINDS.get(model_type) is merged


def geometry(
    model: Any, processor: Any, inputs: Mapping[str, Any], pictures: Sequence[Sequence[Picture]]
) -> list[list[Place]]:
    """What each visual token of each row sees, in the order of the prompt. pictures: those of each row, as the
    processor was given them."""
    parts = find_parts(model)
    _check_known(parts)
    host = to_cpu_in_one_copy({name: inputs.get(name) for name in ("input_ids", "attention_mask", *parts.family.reads)})
    batch = BatchLayout.of(host["input_ids"], parts.visual_ids, host["attention_mask"])
    rows = ImageGrids(parts, host, None).of(batch)
    if len(rows) != len(pictures):
        raise ValueError(f"pictures of {len(pictures)} samples were given for a batch of {len(rows)}")
    return [_row(parts, processor, *row) for row in zip(rows, pictures, strict=True)]


def _check_known(parts: ModelParts) -> None:
    kind = parts.top.config.model_type
    if kind not in KINDS:
        raise UnknownGridError(
            f"where the visual tokens of model_type {kind!r} lie on a picture is not known; "
            f"known are {', '.join(KINDS)}"
        )


def _row(parts: ModelParts, processor: Any, grids: list[list[Tile]], pictures: Sequence[Picture]) -> list[Place]:
    if len(grids) != len(pictures):
        raise UnknownGridError(f"{len(pictures)} pictures were given, but the prompt holds {len(grids)}")
    found: list[Place] = []
    for number, (tiles, picture) in enumerate(zip(grids, pictures, strict=True)):
        sight = _sight(parts, processor, tiles, picture, len(pictures) == 1)
        sheets = KINDS[parts.top.config.model_type](sight)
        if [sheet.shape() for sheet in sheets] != list(tiles):
            raise UnknownGridError(
                f"picture {number + 1} of {sight.size} is laid on {[s.shape() for s in sheets]}, not {tiles}"
            )
        found += [place for sheet in sheets for place in sheet.places(number, sight.size)]
    return found


def _sight(parts: ModelParts, processor: Any, tiles: list[Tile], picture: Picture, alone: bool) -> ImageInfo:
    video = not isinstance(picture, Image.Image)
    still = picture if isinstance(picture, Image.Image) else picture[0]
    whole = alone or parts.top.config.model_type != "llava_onevision"  # which tiles a picture only where it is alone
    return ImageInfo(parts.top.config, processor.image_processor, still.size, tiles, whole, video)


__all__ = ["KINDS", "Box", "Picture", "Place", "TokenGrid", "geometry", "supports_video"]
