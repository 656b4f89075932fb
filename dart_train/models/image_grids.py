"""The tiles that the visual tokens of each row, and of each token group, are on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..reduction.batch_layout import BatchLayout, Per
from .families import GENERIC, Tile, UnknownGridError
from .structure import ModelParts

ImageTiles = list[Tile]  # of one image


class ImageGrids:
    """The tiles of each image of a batch; needed only by methods that use the grid, or have a budget per image."""

    def __init__(self, parts: ModelParts, inputs: Mapping[str, Any], samples: int | None) -> None:
        """inputs: what the family reads, on the host; samples: in the inputs of `generate`, where beam search repeats
        each of them."""
        self.parts, self.inputs, self.samples = parts, inputs, samples

    def of(self, batch: BatchLayout) -> list[list[ImageTiles]]:
        """Per row of the batch, per image, its tiles."""
        repeat = 1 if self.samples is None else batch.shape[0] // self.samples
        samples = batch.rows()[::repeat]
        tiles = self.parts.family.tiles(self.parts.top.config, self.inputs, samples)
        rows = assign_images_to_rows(tiles, [sample.tokens() for sample in samples])
        return [row for row in rows for _ in range(repeat)]

    def image_sizes(self, batch: BatchLayout) -> list[int] | None:
        """Tokens of each image in batch order; None for a model of no known family, where each run of visual tokens
        counts as an image."""
        if self.parts.family is GENERIC:
            return None
        return [_count_tokens(image) for row in self.of(batch) for image in row]


def _count_tokens(tiles: ImageTiles) -> int:
    return sum(height * width for height, width in tiles)


def assign_images_to_rows(images: Sequence[ImageTiles], totals: Sequence[int]) -> list[list[ImageTiles]]:
    """totals: visual tokens of each row."""
    waiting, rows = list(images), []
    for total in totals:
        row: list[ImageTiles] = []
        while sum(map(_count_tokens, row)) < total and waiting:
            row.append(waiting.pop(0))
        found = sum(map(_count_tokens, row))
        if found != total:
            raise UnknownGridError(f"a sample has {total} visual tokens, but the grids of its images make {found}")
        rows.append(row)
    return rows


def group_tiles(grids: list[list[ImageTiles]], batch: BatchLayout, per: Per) -> list[ImageTiles]:
    """Tiles of each token group, in the order of the group's tokens."""
    waiting = [[tile for image in row for tile in image] for row in grids]
    groups = []
    for group in batch.groups(per):
        tiles: ImageTiles = []
        while _count_tokens(tiles) < group.size:
            tiles.append(waiting[group.row].pop(0))
        if _count_tokens(tiles) != group.size:
            raise UnknownGridError(f"a group of {group.size} visual tokens does not end with a tile of its image")
        groups.append(tiles)
    return groups
