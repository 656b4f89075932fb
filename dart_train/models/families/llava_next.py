"""LLaVA-NeXT and LLaVA-OneVision: images of any resolution, as a small overview and large tiles.

The tiles are put together to one grid, the rows and columns that only show padding are cut off, the grid is made
smaller where the model has a limit, and a line-break token ends each row. OneVision does this only for an image that
is alone in its sample; several images get their overview and one line break each. Of a video, OneVision pools the grid
of each frame, and ends the video with one line break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from ..transformers_compat import anyres_grid_shape, count_image_tokens
from .family import Family, Inputs, Rows, UnknownGridError, count_tokens, register, require_input
from .geometry import ImageInfo, Interval, Tile, TokenGrid, encoder_pixels, padded_square, patch_area, split_evenly
from .llava import encoder_tiles
from .resizer import ResizedImage, Resizer


@dataclass(frozen=True)
class LargeGrid:
    """The tiles of one image, put together. tiles: how many (down, across); rows, columns: the (first, last) ones of
    their patches that show the image and not padding; shape: the grid of tokens, without line breaks."""

    tiles: tuple[int, int]
    rows: Interval
    columns: Interval
    shape: Tile

    @classmethod
    def of(cls, config: Any, height: int, width: int) -> LargeGrid:
        encoder, patch = encoder_pixels(config)
        side = encoder // patch
        down, across = anyres_grid_shape(height, width, config.image_grid_pinpoints, encoder)
        rows, columns = _without_padding(down * side, across * side, height, width)
        shape = rows[1] - rows[0], columns[1] - columns[0]
        limit = str(getattr(config, "vision_aspect_ratio", "")).removeprefix("anyres_max_")
        if limit.isdecimal():
            ratio = math.sqrt(shape[0] * shape[1] / (int(limit) * side**2))
            if ratio > 1.1:
                shape = int(shape[0] // ratio), int(shape[1] // ratio)
        return cls((down, across), rows, columns, shape)


def _without_padding(rows: int, columns: int, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of a padded grid that shows the image, rounded as the model rounds it."""
    if width / height > columns / rows:
        margin = (rows - int(round(height * columns / width, 7))) // 2
        return (margin, rows - margin), (0, columns)
    margin = (columns - int(round(width * rows / height, 7))) // 2
    return (0, rows), (margin, columns - margin)


def anyres_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """Per image: a class token where it is kept, the overview, and the large grid with its line breaks. Images that
    are not alone in their sample, as `batch_num_images` counts them, have one line break instead of the large grid."""
    if getattr(config, "video_token_id", None) is not None:
        return _with_videos(config, inputs, rows)
    return _image_tiles(config, inputs, count_tokens(rows))


def _image_tiles(config: Any, inputs: Inputs, expected: int) -> list[list[Tile]]:
    sizes = require_input(inputs, "image_sizes")
    counts = [1] * len(sizes)
    if inputs.get("batch_num_images") is not None:
        counts = require_input(inputs, "batch_num_images")
    alone = [count == 1 for count in counts for _ in range(count)]
    small = encoder_tiles(config)
    images = [[*small, _large_tile(config, size) if one else (1, 1)] for size, one in zip(sizes, alone, strict=True)]
    tokens = sum(height * width for image in images for height, width in image)
    if tokens != expected:
        raise UnknownGridError(f"images of sizes {sizes} make {tokens} visual tokens, but the prompt has {expected}")
    return images


def _with_videos(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """Images and videos in the order of the prompt, which may have them side by side."""
    runs = [run for row in rows for start, stop in row.runs for run in _same_ids(row.ids[start:stop].tolist())]
    of_images = sum(length for token, length in runs if token != config.video_token_id)
    images, found = _image_tiles(config, inputs, of_images) if of_images else [], list[list[Tile]]()
    for token, length in runs:
        if token == config.video_token_id:
            found += _video_tiles(config, length)
            continue
        while length > 0:
            found.append(images.pop(0))
            length -= sum(height * width for height, width in found[-1])
    return found


def _same_ids(ids: Sequence[int]) -> list[tuple[int, int]]:
    return [(token, len(list(group))) for token, group in groupby(ids)]


def _video_tiles(config: Any, length: int) -> list[list[Tile]]:
    """Of the videos that touch in a run of so many tokens. Those of a batch have as many frames each, and each one has
    a line break, so that the remainder tells how many they are."""
    encoder, patch = encoder_pixels(config)
    side = math.ceil(encoder // patch / 2)
    videos = length % side**2 or side**2
    frames, left_over = divmod(length - videos, videos * side**2)
    if left_over or not frames:
        raise UnknownGridError(f"{length} tokens of videos do not divide into frames of {side} x {side} tokens")
    return [[*[(side, side)] * frames, (1, 1)]] * videos


def _large_tile(config: Any, size: Sequence[int]) -> Tile:
    rows, columns = LargeGrid.of(config, int(size[0]), int(size[1])).shape
    return rows, columns + 1


def anyres_geometry(info: ImageInfo, several_are_tiled: bool) -> list[TokenGrid]:
    if info.video:  # each frame is resized to the encoder's square
        area = patch_area(info.area, info.config)
        frames = [TokenGrid.over(area, tile, "video", i) for i, tile in enumerate(info.tiles[:-1])]
        return [*frames, TokenGrid.blank()]
    tiled = info.alone or several_are_tiled
    area = patch_area(info.area if tiled else padded_square(*info.size), info.config)
    view = "overview" if tiled else "image"
    small = [TokenGrid.blank() if tile == (1, 1) else TokenGrid.over(area, tile, view) for tile in info.tiles[:-1]]
    return [*small, _large_geometry(info) if tiled else TokenGrid.blank()]


def _large_geometry(info: ImageInfo) -> TokenGrid:
    (width, height), (side, patch) = info.size, encoder_pixels(info.config)
    grid = LargeGrid.of(info.config, height, width)
    room_down, room_across = grid.tiles[0] * side, grid.tiles[1] * side
    new_width, new_height = _fitted(width, height, room_across, room_down)
    columns = _line(grid.columns, grid.shape[1], side, patch, _to_image(room_across, new_width, width))
    rows = _line(grid.rows, grid.shape[0], side, patch, _to_image(room_down, new_height, height))
    return TokenGrid("tiles", [*columns, None], rows)


def _fitted(width: int, height: int, room_across: int, room_down: int) -> tuple[int, int]:
    """The image with its aspect ratio, as large as the tiles have room for."""
    if room_across / width < room_down / height:
        return room_across, min(math.ceil(height * room_across / width), room_down)
    return min(math.ceil(width * room_down / height), room_across), room_down


def _to_image(room: int, used: int, original: int) -> Callable[[float], float]:
    """From pixels of the tiles to pixels of the image in their middle."""
    before = (room - used) // 2
    return lambda x: (x - before) * original / used


def _line(cells: Interval, parts: int, side: int, patch: int, to_image: Callable[[float], float]) -> list[Interval]:
    """The interval of cells in so many parts, each in pixels of the image."""
    return [
        (to_image(_start(start, side, patch)), to_image(_stop(stop, side, patch)))
        for start, stop in split_evenly(cells, parts)
    ]


def _start(cell: float, side: int, patch: int) -> float:
    """Where a cell begins, in pixels of the tiles, each of which may have pixels left over after its patches."""
    per_tile = side // patch
    tile = math.floor(cell / per_tile + 1e-9)
    return tile * side + (cell - tile * per_tile) * patch


def _stop(cell: float, side: int, patch: int) -> float:
    per_tile = side // patch
    tile = math.ceil(cell / per_tile - 1e-9) - 1
    return tile * side + (cell - tile * per_tile) * patch


class AnyResolutionResizer(Resizer):
    """An overview and one of several resolutions; the smallest resolution is the limit."""

    def full(self, height: int, width: int) -> ResizedImage:
        return ResizedImage(height, width, count_image_tokens(self.processor, height, width)[0])

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        sizes = [self._filling(height, width, *point) for point in self.image_processor.image_grid_pinpoints]
        within = [size for size in sizes if size.tokens <= tokens]
        return max(within, key=lambda s: s.tokens) if within else min(sizes, key=lambda s: s.tokens)

    def _filling(self, height: int, width: int, room_down: int, room_across: int) -> ResizedImage:
        """The image with its aspect ratio, as large as a resolution has room for."""
        scale = min(room_down / height, room_across / width)
        return self.full(max(1, int(height * scale)), max(1, int(width * scale)))


LLAVA_NEXT = register(
    Family(
        name="LLaVA-NeXT",
        model_types=("llava_next",),
        tiles=anyres_tiles,
        reads=("image_sizes", "batch_num_images"),
        geometry=partial(anyres_geometry, several_are_tiled=True),
        processors=("LlavaNextProcessor",),
        resizer=AnyResolutionResizer,
        projectors=frozenset({"multi_modal_projector", "image_newline"}),
    )
)
LLAVA_ONEVISION = register(
    replace(
        LLAVA_NEXT,
        name="LLaVA-OneVision",
        model_types=("llava_onevision",),
        geometry=partial(anyres_geometry, several_are_tiled=False),
        video_geometry=True,
        processors=("LlavaOnevisionProcessor",),
    )
)
