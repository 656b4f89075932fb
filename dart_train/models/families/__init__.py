"""Model families as data: which tokens are visual, and how a picture's tokens lie on its grid.

A new family is one record. A model that is in none goes the generic path: everything that does not need the
picture's grid works wherever the decoder looks like one (see `attach.anatomy`); `dart_train.conformance` proves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...reduction.batch_layout import SampleLayout

Tile = tuple[int, int]  # rows, columns; a column of line-break tokens counts
Inputs = Mapping[str, Any]
Rows = Sequence[SampleLayout]


class UnknownGridError(ValueError):
    """The grid of a picture is not known."""


@dataclass(frozen=True)
class Family:
    """tiles(config, inputs, rows): the tiles of each image of the batch, in order; all tiles of an image, and all
    frames of a video, are one image. reads: the inputs that it looks at, on the host. own_positions: the model
    computes its positions itself, from the grid."""

    name: str
    model_types: tuple[str, ...]
    tiles: Callable[[Any, Inputs, Rows], list[list[Tile]]]
    reads: tuple[str, ...] = ()
    own_positions: bool = False
    bidirectional_images: bool = False


def fixed_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """Every image is one square of the encoder's size (LLaVA-1.5, Gemma 3, and most others). What pan-and-scan
    crops are to Gemma 3, they are here: images of their own."""
    side, extra = _encoder_side(config)
    return [[*extra, side]] * (_tokens(rows) // (side[0] * side[1] + len(extra)))


def _tokens(rows: Rows) -> int:
    return sum(row.tokens() for row in rows)


def _encoder_side(config: Any) -> tuple[Tile, list[Tile]]:
    """The grid of one encoder pass after any pooling, and the class token where it is kept."""
    per_image = getattr(config, "mm_tokens_per_image", None)
    if per_image is None:
        size, patch = _first(config.vision_config.image_size), _first(config.vision_config.patch_size)
        per_image = (size // patch) ** 2
    side = math.isqrt(per_image)
    full = getattr(config, "vision_feature_select_strategy", "default") == "full"
    has_class = full and config.vision_config.model_type == "clip_vision_model"
    return (side, side), [(1, 1)] if has_class else []


def marker_separated_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """Each run of visual tokens is one square tile, and text stands between tiles (Idefics3, SmolVLM): the mark
    that opens every tile, and once more behind the last tile of an image."""
    return [image for row in rows if row.runs for image in _images_from_markers(row)]


def _images_from_markers(row: SampleLayout) -> list[list[Tile]]:
    """Between tiles of one image stands one mark, between two images there are two or more."""
    ids, behind, images = row.ids.tolist(), 0, list[list[Tile]]()
    if row.runs[-1][1] == len(ids):
        raise UnknownGridError("the sample ends with a visual token: what closes its last image is missing")
    mark = ids[row.runs[-1][1]]
    for start, stop in row.runs:
        if not images or ids[behind:start].count(mark) > 1:
            images.append([])
        images[-1].append(_square(stop - start))
        behind = stop
    return images


def _square(run: int) -> Tile:
    side = math.isqrt(run)
    if side * side != run:
        raise UnknownGridError(f"{run} visual tokens in a row are not a square")
    return side, side


def internvl_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """A run is one image: tiles of image_seq_length tokens each, one after the other."""
    side = math.isqrt(config.image_seq_length)
    runs = [stop - start for row in rows for start, stop in row.runs]
    return [[(side, side)] * (run // (side * side)) for run in runs]


def qwen_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """From the grids that the processor gives, after the merger; a video is one tile per temporal patch, and in
    Qwen3-VL a time stands before each."""
    names = {config.image_token_id: "image_grid_thw", config.video_token_id: "video_grid_thw"}
    waiting = {name: list(_need(inputs, name)) if inputs.get(name) is not None else [] for name in names.values()}
    merge, missing, images = config.vision_config.spatial_merge_size, 0, list[list[Tile]]()
    for token, length in ((int(row.ids[start]), stop - start) for row in rows for start, stop in row.runs):
        while length:
            if not missing:
                images.append(_next_grid(waiting, names[token], merge))
                missing = sum(height * width for height, width in images[-1])
            seen = min(missing, length)
            missing, length = missing - seen, length - seen
    return images


def _next_grid(waiting: dict[str, list[list[int]]], name: str, merge: int) -> list[Tile]:
    if not waiting[name]:
        raise UnknownGridError(
            f"{name} is missing from the model's inputs, or has fewer grids than the prompt has images"
        )
    frames, height, width = waiting[name].pop(0)
    return [(height // merge, width // merge)] * frames


def anyres_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """LLaVA-NeXT and OneVision: the small overview, then the large picture with a line break per row.
    OneVision tiles an image only where it is alone in its sample; otherwise one line break ends the overview."""
    sizes = _need(inputs, "image_sizes")
    several = "batch_num_images"
    numbers = [1] * len(sizes) if inputs.get(several) is None else _need(inputs, several)
    alone = [number == 1 for number in numbers for _ in range(number)]
    (side, _), extra = _encoder_side(config)
    large = [_anyres(config, side, size) if one else (1, 1) for size, one in zip(sizes, alone, strict=True)]
    tokens = sum(rows * columns for rows, columns in [*large, *[*extra, (side, side)] * len(sizes)])
    if tokens != _tokens(rows):
        raise UnknownGridError(
            f"images of sizes {sizes} make {tokens} visual tokens, but {_tokens(rows)} stand in the prompt"
        )
    return [[*extra, (side, side), tile] for tile in large]


def _anyres(config: Any, side: int, size: Sequence[int]) -> Tile:
    """The large picture: without its padding, shrunk where the model has a limit, and with its line breaks."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    encoder = config.vision_config.image_size
    tall, wide = get_anyres_image_grid_shape(list(size), config.image_grid_pinpoints, encoder)
    rows, columns = _unpadded_grid(tall * side, wide * side, size)
    limit = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if limit.isdecimal():
        ratio = math.sqrt(rows * columns / (int(limit) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns + 1


def _unpadded_grid(rows: int, columns: int, size: Sequence[int]) -> Tile:
    """The part of a padded grid that shows the picture of `size` (height, width)."""
    height, width = size
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(round(height * columns / width, 7))) // 2), columns
    return rows, columns - 2 * ((columns - int(round(width * rows / height, 7))) // 2)


def unknown_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    raise UnknownGridError(
        f"no record in dart_train.models.families tells the grid of model_type {config.model_type!r}"
    )


def _need(inputs: Inputs, name: str) -> list[Any]:
    value = inputs.get(name)
    if value is None:
        raise UnknownGridError(f"{name} is missing from the model's inputs")
    return list(value.tolist()) if hasattr(value, "tolist") else list(value)


def _first(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)


_SIZES = ("image_sizes", "batch_num_images")
_GRIDS = ("image_grid_thw", "video_grid_thw")
FAMILIES = (
    Family("LLaVA-1.5", ("llava",), fixed_tiles),
    Family("LLaVA-NeXT", ("llava_next",), anyres_tiles, _SIZES),
    Family("LLaVA-OneVision", ("llava_onevision",), anyres_tiles, _SIZES),
    Family("Qwen2-VL", ("qwen2_vl",), qwen_tiles, _GRIDS, own_positions=True),
    Family("Qwen2.5-VL", ("qwen2_5_vl",), qwen_tiles, _GRIDS, own_positions=True),
    Family("Qwen3-VL", ("qwen3_vl",), qwen_tiles, _GRIDS, own_positions=True),
    Family("InternVL", ("internvl",), internvl_tiles),
    Family("Idefics3, SmolVLM", ("idefics3", "smolvlm"), marker_separated_tiles),
    Family("Gemma 3", ("gemma3",), fixed_tiles, bidirectional_images=True),
)
GENERIC = Family("generic", (), unknown_tiles, own_positions=True)


def family_of(model_type: str) -> Family:
    return next((family for family in FAMILIES if model_type in family.model_types), GENERIC)
