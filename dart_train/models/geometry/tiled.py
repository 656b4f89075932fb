"""InternVL, Idefics3, SmolVLM: the picture in tiles, row by row, and behind them all of it once more, small."""

from __future__ import annotations

from ..families import UnknownGridError
from .box import Box, even
from .sheet import TokenGrid
from .sight import ImageInfo, patched

TILES, OVERVIEW = "tiles", "overview"


def canvas(sight: ImageInfo) -> list[TokenGrid]:
    """InternVL: as many tiles as suit the picture's shape."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    images, (width, height) = sight.images, sight.size
    side = images.size["height"], images.size["width"]
    if len(sight.tiles) == 1:
        return _one(sight)
    columns, rows = get_optimal_tiled_canvas((height, width), side, images.min_patches, images.max_patches)
    return _split(sight, rows, columns)


def split(sight: ImageInfo) -> list[TokenGrid]:
    """Idefics3, SmolVLM: as many tiles as its longest side gives."""
    if len(sight.tiles) == 1:
        return _one(sight)
    width, height = sight.size
    _, rows, columns = sight.images.get_number_of_image_patches(height, width, {})
    return _split(sight, rows, columns)


def _one(sight: ImageInfo) -> list[TokenGrid]:
    return [TokenGrid.over(patched(sight.whole, sight.config), sight.tiles[0], "picture")]


def _split(sight: ImageInfo, rows: int, columns: int) -> list[TokenGrid]:
    if rows * columns + 1 != len(sight.tiles):
        raise UnknownGridError(
            f"a picture of {sight.size} gives {rows} x {columns} tiles, but {len(sight.tiles)} stand there"
        )
    boxes = [
        Box(across[0], down[0], across[1], down[1])
        for down in even(sight.whole.down, rows)
        for across in even(sight.whole.across, columns)
    ]
    named = [*((box, TILES) for box in boxes), (sight.whole, OVERVIEW)]
    found = zip(named, sight.tiles, strict=True)
    return [TokenGrid.over(patched(box, sight.config), tile, view) for (box, view), tile in found]
