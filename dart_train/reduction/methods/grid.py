"""Methods that look at the image's grid only: one token of each cell, or the mean of each cell.

The grid is cut into exactly as many cells of nearly equal size as tokens are kept; WindowFastV uses the same cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Reducer
from ..budget import split_budget
from ..context import SelectionContext
from ..token_groups import upload


def grid_cells(rows: int, columns: int, cells: int) -> Tensor:
    """[rows * columns] long: the cell of each place, in reading order. 24 x 24 into 144 gives 2 x 2 blocks.

    The grid is cut into bands, and each band into its share of the cells; any number from 1 to
    rows * columns comes out exactly.
    """
    bands = round(math.sqrt(cells * rows / columns))
    bands = min(rows, cells, max(bands, math.ceil(cells / columns), 1))
    band = torch.arange(rows) * bands // rows
    in_band = torch.tensor(_distribute(cells, torch.bincount(band).tolist(), columns))
    start = torch.cumsum(in_band, 0) - in_band
    column = torch.arange(columns) * in_band[band][:, None] // columns
    return (start[band][:, None] + column).flatten()


def _distribute(cells: int, heights: Sequence[int], columns: int) -> list[int]:
    """Cells over bands by their heights; evenly where a band would get more cells than it has columns."""
    by_height = split_budget(cells, [height * columns for height in heights])
    return by_height if max(by_height) <= columns else split_budget(cells, [columns] * len(heights))


def tile_shapes(context: SelectionContext, group: int) -> Sequence[tuple[int, int]]:
    """(rows, columns) of each tile of a group. After an earlier stage the grid has holes: the remaining tokens, in
    reading order, then serve as a grid of one row."""
    if context.grid_shapes is None or context.groups.sizes[group] != context.groups.original[group]:
        return [(1, context.groups.sizes[group])]
    return context.grid_shapes[group]


def cells_of(context: SelectionContext, wanted: Sequence[int]) -> Tensor:
    """[R, N] long: the cell of each token of each group, `wanted` cells a group, -1 for none (and padding)."""
    out = torch.full(context.valid.shape, -1)
    for group, number in enumerate(wanted):
        shapes = tile_shapes(context, group)
        parts, first = [], 0
        for (rows, columns), cells in zip(shapes, split_budget(number, [r * c for r, c in shapes]), strict=True):
            none = torch.full((rows * columns,), -1)
            parts.append(grid_cells(rows, columns, cells) + first if cells else none)
            first += cells
        cell = torch.cat(parts)
        out[group, : len(cell)] = cell
    return out


def cell_centers(cells: Tensor) -> Tensor:
    """cells [R, N] -> [R, N] long: the place of the middle token of each token's cell (itself where none)."""
    order = torch.argsort(cells, dim=1, stable=True)
    ranked = cells.gather(1, order)
    places = torch.arange(cells.shape[1])
    out = places.expand_as(cells).clone()
    for row in range(cells.shape[0]):
        _, cell, counts = torch.unique_consecutive(ranked[row], return_inverse=True, return_counts=True)
        middle = order[row][(torch.cumsum(counts, 0) - counts + counts // 2)[cell]]
        out[row, order[row]] = torch.where(ranked[row] >= 0, middle, order[row])
    return out


@dataclass(frozen=True, kw_only=True)
class UniformGrid(Reducer):
    """Keeps the middle token of each of `keep` equal cells, whatever the image shows: the spatial control for every
    method that looks at content."""

    name: ClassVar[str] = "uniform"
    requires: ClassVar[frozenset[str]] = frozenset({"grid"})

    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        cells = cells_of(context, self.counts(context.groups))
        chosen = (cell_centers(cells) == torch.arange(cells.shape[1])) & (cells >= 0)
        return upload(chosen, context.valid.device) & context.valid


@dataclass(frozen=True, kw_only=True)
class Pooling(UniformGrid):
    """Average pooling to the budget (the paper: 2 x 2, 576 -> 144): the mean of each cell, at its middle
    token."""

    name: ClassVar[str] = "pooling"

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor:
        return upload(cell_centers(cells_of(context, self.counts(context.groups))), keep.device)
