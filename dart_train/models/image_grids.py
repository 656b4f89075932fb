"""Which tiles the visual tokens of each row, and of each group, belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..reduction.batch_layout import BatchLayout, Per
from .families import GENERIC, UnknownGridError
from .structure import ModelParts


class ImageGrids:
    """The tiles of each group's images. Needed only by methods that look at the grid, or budget by image."""

    def __init__(self, parts: ModelParts, inputs: Mapping[str, Any], rows: int | None) -> None:
        """inputs: what the family reads, on the host; rows: the samples of `generate`'s inputs; beams repeat each."""
        self.parts, self.inputs, self.rows = parts, inputs, rows

    def of(self, batch: BatchLayout) -> list[list[list[tuple[int, int]]]]:
        """Per row of the batch, per image, its tiles."""
        repeat = 1 if self.rows is None else batch.shape[0] // self.rows
        samples = batch.rows()[::repeat]
        tiles = self.parts.family.tiles(self.parts.top.config, self.inputs, samples)
        rows = assign_images_to_rows(tiles, [sample.tokens() for sample in samples])
        return [row for row in rows for _ in range(repeat)]

    def image_sizes(self, batch: BatchLayout) -> list[int] | None:
        """Tokens of each image in batch order; None in a model of no known family, where a run serves as an image."""
        if self.parts.family is GENERIC:
            return None
        return [sum(r * c for r, c in image) for row in self.of(batch) for image in row]


def assign_images_to_rows(
    tiles: Sequence[list[tuple[int, int]]], totals: Sequence[int]
) -> list[list[list[tuple[int, int]]]]:
    """The images of a batch to its rows, by the visual tokens that each row has."""
    waiting, rows = list(tiles), []
    for total in totals:
        row: list[list[tuple[int, int]]] = []
        while sum(r * c for image in row for r, c in image) < total and waiting:
            row.append(waiting.pop(0))
        found = sum(r * c for image in row for r, c in image)
        if found != total:
            raise UnknownGridError(f"a sample has {total} visual tokens, but the grids of its images make {found}")
        rows.append(row)
    return rows


def group_tiles(grids: list[list[list[tuple[int, int]]]], batch: BatchLayout, per: Per) -> list[list[tuple[int, int]]]:
    """Tiles of each group, in the order of the group's tokens."""
    shapes = []
    queues = [[tile for image in row for tile in image] for row in grids]
    for group in batch.groups(per):
        taken, size = [], 0
        while size < group.size:
            taken.append(queues[group.row].pop(0))
            size += taken[-1][0] * taken[-1][1]
        if size != group.size:
            raise UnknownGridError(f"a group of {group.size} visual tokens does not end with a tile of its image")
        shapes.append(taken)
    return shapes
