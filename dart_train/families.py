"""Model families as data: which tokens are visual, and how a picture's tokens lie on its grid.

A new family is one record. A model that is in none goes the generic path: everything that does not need the
picture's grid works wherever the decoder looks like one (see `attach.anatomy`); `dart_train.check` proves it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tile = tuple[int, int]  # rows, columns; a column of line-break tokens counts
Inputs = Mapping[str, Any]


class NoGrid(ValueError):
    """The grid of a picture is not known."""


@dataclass(frozen=True)
class Family:
    """tiles(config, inputs, runs): the tiles of each image of the batch, in order; runs: lengths of the runs
    of visual tokens. own_positions: the model computes its positions itself, from the grid."""

    name: str
    model_types: tuple[str, ...]
    tiles: Callable[[Any, Inputs, Sequence[int]], list[list[Tile]]]
    own_positions: bool = False
    bidirectional_images: bool = False


def fixed_tiles(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    """Every image is one square of the encoder's size (LLaVA-1.5, Gemma 3, and most others)."""
    side, extra = _encoder_side(config)
    return [[*extra, side]] * (sum(runs) // (side[0] * side[1] + len(extra)))


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


def square_runs(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    """Each run of visual tokens is one square tile (Idefics3, SmolVLM: text stands between tiles)."""
    sides = [math.isqrt(run) for run in runs]
    bad = [run for run, side in zip(runs, sides, strict=True) if side * side != run]
    if bad:
        raise NoGrid(f"{bad[0]} visual tokens in a row are not a square")
    return [[(side, side)] for side in sides]


def internvl_tiles(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    """A run is one image: tiles of image_seq_length tokens each, one after the other."""
    side = math.isqrt(config.image_seq_length)
    return [[(side, side)] * (run // (side * side)) for run in runs]


def qwen_tiles(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    """From the grids that the processor gives, after the merger; a video is one tile per temporal patch."""
    merge = config.vision_config.spatial_merge_size
    grids = _need(inputs, "image_grid_thw") if inputs.get("video_grid_thw") is None else _in_order(inputs, runs)
    return [[(h // merge, w // merge)] * t for t, h, w in grids]


def _in_order(inputs: Inputs, runs: Sequence[int]) -> list[list[int]]:
    if inputs.get("image_grid_thw") is not None:
        raise NoGrid("images and videos in one batch: their order is not known to the grid")
    return list(inputs["video_grid_thw"].tolist())


def anyres_tiles(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    """LLaVA-NeXT and OneVision: the small overview, then the large picture with a line break per row.
    OneVision tiles an image only where it is alone in its sample; otherwise one line break ends the overview."""
    sizes = _need(inputs, "image_sizes")
    several = "batch_num_images"
    numbers = [1] * len(sizes) if inputs.get(several) is None else _need(inputs, several)
    alone = [number == 1 for number in numbers for _ in range(number)]
    (side, _), extra = _encoder_side(config)
    large = [_anyres(config, side, size) if one else (1, 1) for size, one in zip(sizes, alone, strict=True)]
    tokens = sum(rows * columns for rows, columns in [*large, *[*extra, (side, side)] * len(sizes)])
    if tokens != sum(runs):
        raise NoGrid(f"images of sizes {sizes} make {tokens} visual tokens, but {sum(runs)} stand in the prompt")
    return [[*extra, (side, side), tile] for tile in large]


def _anyres(config: Any, side: int, size: Sequence[int]) -> Tile:
    """The large picture: without its padding, shrunk where the model has a limit, and with its line breaks."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    encoder = config.vision_config.image_size
    tall, wide = get_anyres_image_grid_shape(list(size), config.image_grid_pinpoints, encoder)
    rows, columns = _unpadded(tall * side, wide * side, size)
    limit = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
    if limit.isdecimal():
        ratio = math.sqrt(rows * columns / (int(limit) * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows, columns + 1


def _unpadded(rows: int, columns: int, size: Sequence[int]) -> Tile:
    """The part of a padded grid that shows the picture of `size` (height, width)."""
    height, width = size
    if width / height > columns / rows:
        return rows - 2 * ((rows - int(round(height * columns / width, 7))) // 2), columns
    return rows, columns - 2 * ((columns - int(round(width * rows / height, 7))) // 2)


def unknown_tiles(config: Any, inputs: Inputs, runs: Sequence[int]) -> list[list[Tile]]:
    raise NoGrid(f"no record in dart_train.families tells the grid of model_type {config.model_type!r}")


def _need(inputs: Inputs, name: str) -> list[Any]:
    value = inputs.get(name)
    if value is None:
        raise NoGrid(f"{name} is missing from the model's inputs")
    return list(value.tolist()) if hasattr(value, "tolist") else list(value)


def _first(size: Any) -> int:
    return int(size[0]) if isinstance(size, list | tuple) else int(size)


FAMILIES = (
    Family("LLaVA-1.5", ("llava",), fixed_tiles),
    Family("LLaVA-NeXT", ("llava_next",), anyres_tiles),
    Family("LLaVA-OneVision", ("llava_onevision",), anyres_tiles),
    Family("Qwen2-VL", ("qwen2_vl",), qwen_tiles, own_positions=True),
    Family("Qwen2.5-VL", ("qwen2_5_vl",), qwen_tiles, own_positions=True),
    Family("Qwen3-VL", ("qwen3_vl",), qwen_tiles, own_positions=True),
    Family("InternVL", ("internvl",), internvl_tiles),
    Family("Idefics3, SmolVLM", ("idefics3", "smolvlm"), square_runs),
    Family("Gemma 3", ("gemma3",), fixed_tiles, bidirectional_images=True),
)
GENERIC = Family("generic", (), unknown_tiles, own_positions=True)


def family_of(model_type: str) -> Family:
    return next((family for family in FAMILIES if model_type in family.model_types), GENERIC)
