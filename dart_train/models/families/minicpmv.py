"""MiniCPM-V 4.6 and 4.7, MiniCPM-OCR: the image as an overview, and a large one as slices, row by row.

A token is 4 x 4 patches, or 2 x 2 of them with `downsample_mode` 4x. The processor passes the patches (rows, columns)
of the overview and of each slice. In the prompt each of them is a run of its own, and a marker opens the overview.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...reduction.budget import Keep
from ..transformers_compat import minicpm_layout
from .family import Family, Inputs, Rows, UnknownGridError, register, require_input
from .geometry import ImageInfo, Tile, TokenGrid
from .internvl import cut_into_tiles
from .markers import runs_from_start_marker
from .resizer import GridResizer, ResizedImage, fit_grid


def patches_per_token(downsample_mode: str | None) -> int:
    """Along one side."""
    return 2 if downsample_mode == "4x" else 4


def sliced_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    merged = patches_per_token(inputs.get("downsample_mode") or config.downsample_mode)
    waiting = [(int(height) // merged, int(width) // merged) for height, width in require_input(inputs, "target_sizes")]
    images = list[list[Tile]]()
    for runs in runs_from_start_marker(rows):
        if len(waiting) < len(runs):
            raise UnknownGridError(f"target_sizes has {len(waiting)} more slices, but an image has {len(runs)}")
        images.append([waiting.pop(0) for _ in runs])
    return images


def overview_and_slices(info: ImageInfo) -> list[TokenGrid]:
    width, height = info.size
    if len(info.tiles) == 1:
        return [TokenGrid.over(info.area, info.tiles[0], "image")]
    grid, _ = minicpm_layout(info.image_processor, height, width)
    if grid[0] * grid[1] + 1 != len(info.tiles):
        raise UnknownGridError(
            f"an image of {info.size} gives {grid[0]} x {grid[1]} slices, but the prompt has {len(info.tiles) - 1}"
        )
    boxes = [(info.area, "overview"), *((box, "tiles") for box in cut_into_tiles(info.area, *grid))]
    return [TokenGrid.over(box, tile, view) for (box, view), tile in zip(boxes, info.tiles, strict=True)]


class SliceResizer(GridResizer):
    """Without slices: any number of rows and columns; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.image_processor.patch_size) * patches_per_token(self.image_processor.downsample_mode)

    def full(self, height: int, width: int) -> ResizedImage:
        _, sizes = minicpm_layout(self.image_processor, height, width)
        return ResizedImage(height, width, sum((h // self.side) * (w // self.side) for h, w in sizes))

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        return self._resized(*fit_grid(height, width, tokens))

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False, "slice_mode": False}


_RECORD = Family(
    name="MiniCPM-V",
    model_types=("minicpmv4_6", "minicpmv4_7"),
    tiles=sliced_tiles,
    reads=("target_sizes", "downsample_mode"),
    geometry=overview_and_slices,
    processors=("MiniCPMV4_6Processor", "MiniCPMV4_7Processor"),
    resizer=SliceResizer,
    projectors=frozenset({"merger", "vit_merger"}),
    own_positions=True,
)
MINICPM_V = register(_RECORD)
MINICPM_OCR = register(
    replace(
        _RECORD,
        name="MiniCPM-OCR",
        model_types=("minicpm_ocr",),
        processors=("MiniCPMOcrProcessor",),
        resizer=None,
        no_resizer="its image processor resizes every image to its own size",
    )
)
