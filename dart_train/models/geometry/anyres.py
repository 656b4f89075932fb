"""LLaVA-NeXT, LLaVA-OneVision: all of the picture small, then large in tiles, without the tiles' padding, a line
break behind each row, and shrunk where the model has a limit."""

from __future__ import annotations

import math
from collections.abc import Callable

from .box import Interval, even
from .sheet import TokenGrid
from .sight import ImageInfo, encoder, patched
from .square import padded_square

TILES, OVERVIEW = "tiles", "overview"


def anyres(sight: ImageInfo) -> list[TokenGrid]:
    *small, large = sight.tiles
    shown = patched(sight.whole if sight.alone else padded_square(*sight.size), sight.config)
    view = OVERVIEW if sight.alone else "picture"
    sheets = [TokenGrid.blank() if tile == (1, 1) else TokenGrid.over(shown, tile, view) for tile in small]
    return [*sheets, _large(sight, *large) if sight.alone else TokenGrid.blank()]


def _large(sight: ImageInfo, rows: int, columns: int) -> TokenGrid:
    """columns: the line break's among them."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    (width, height), (side, patch) = sight.size, encoder(sight.config)
    tiles = get_anyres_image_grid_shape([height, width], sight.config.image_grid_pinpoints, side)
    tall, wide = (int(number) for number in tiles)
    new_width, new_height = _fitted(width, height, wide * side, tall * side)
    per = side // patch
    full_rows, full_columns = _without_padding(tall * per, wide * per, height, width)
    across = _line(full_columns, columns - 1, side, patch, _back(wide * side, new_width, width))
    down = _line(full_rows, rows, side, patch, _back(tall * side, new_height, height))
    return TokenGrid(TILES, [*across, None], down)


def _fitted(width: int, height: int, room_across: int, room_down: int) -> tuple[int, int]:
    """The picture, its shape kept, as large as the tiles have room for."""
    if room_across / width < room_down / height:
        return room_across, min(math.ceil(height * room_across / width), room_down)
    return min(math.ceil(width * room_down / height), room_across), room_down


def _without_padding(rows: int, columns: int, height: int, width: int) -> tuple[Interval, Interval]:
    """(first, last) rows and columns of the tiles' grid that show the picture, as the model cuts them."""
    if width / height > columns / rows:
        margin = (rows - int(round(height * columns / width, 7))) // 2
        return (margin, rows - margin), (0, columns)
    margin = (columns - int(round(width * rows / height, 7))) // 2
    return (0, rows), (margin, columns - margin)


def _back(room: int, used: int, original: int) -> Callable[[float], float]:
    """From pixels of the tiles to pixels of the picture, which stands in their middle."""
    before = (room - used) // 2
    return lambda x: (x - before) * original / used


def _line(cells: Interval, parts: int, side: int, patch: int, back: Callable[[float], float]) -> list[Interval]:
    """Cells of the tiles' grid -> where they lie on the picture, `parts` of them."""
    return [(back(_start(start, side, patch)), back(_stop(stop, side, patch))) for start, stop in even(cells, parts)]


def _start(cell: float, side: int, patch: int) -> float:
    """Where a cell begins, in pixels of the tiles, each of which may have pixels left over behind its patches."""
    per = side // patch
    tile = math.floor(cell / per + 1e-9)
    return tile * side + (cell - tile * per) * patch


def _stop(cell: float, side: int, patch: int) -> float:
    per = side // patch
    tile = math.ceil(cell / per - 1e-9) - 1
    return tile * side + (cell - tile * per) * patch
