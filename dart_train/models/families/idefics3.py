"""Idefics3 and SmolVLM: square tiles as the image's longer side gives them, then the image once more as an overview.

In the prompt every tile is a run of visual tokens of its own, with text between the tiles: the marker that opens every
tile, and once more after the last tile of an image.
"""

from __future__ import annotations

from typing import Any

from ...reduction.budget import Keep
from ..transformers_compat import split_grid
from .family import Family, Inputs, Rows, UnknownGridError, register
from .geometry import ImageInfo, Tile, TokenGrid, patch_area
from .internvl import tiles_and_overview
from .markers import square_tile
from .resizer import GridResizer


def marker_separated_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    """Each run of visual tokens is one square tile."""
    return [image for row in rows if row.runs for image in _images_from_markers(row)]


def _images_from_markers(row: Any) -> list[list[Tile]]:
    """Between the tiles of an image there is one marker, between two images there are two or more."""
    ids, end, images = row.ids.tolist(), 0, list[list[Tile]]()
    if row.runs[-1][1] == len(ids):
        raise UnknownGridError("the sample ends with a visual token: the marker that ends its last image is missing")
    marker = ids[row.runs[-1][1]]
    for start, stop in row.runs:
        if not images or ids[end:start].count(marker) > 1:
            images.append([])
        images[-1].append(square_tile(stop - start))
        end = stop
    return images


def split_geometry(info: ImageInfo) -> list[TokenGrid]:
    if len(info.tiles) == 1:
        return [TokenGrid.over(patch_area(info.area, info.config), info.tiles[0], "image")]
    width, height = info.size
    return tiles_and_overview(info, *split_grid(info.image_processor, height, width))


class SplitResizer(GridResizer):
    """A cell is a tile. As soon as there are two tiles, there is an overview."""

    @property
    def side(self) -> int:
        return int(self.image_processor.max_image_size["longest_edge"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = split_grid(self.image_processor, height, width)
        return max(1, rows), max(1, columns)

    def tokens(self, cells: int) -> int:
        return int(self.processor.image_seq_len) * (cells + (cells > 1))

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}  # resizing would enlarge the image to the largest number of tiles


IDEFICS3 = register(
    Family(
        name="Idefics3, SmolVLM",
        model_types=("idefics3", "smolvlm"),
        tiles=marker_separated_tiles,
        geometry=split_geometry,
        no_video="each frame is an image of its own in the prompt; give the frames as images",
        processors=("Idefics3Processor", "SmolVLMProcessor"),
        resizer=SplitResizer,
        projectors=frozenset({"connector"}),
    )
)
