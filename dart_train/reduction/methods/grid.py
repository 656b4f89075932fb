"""Pooling: average pooling of the image's grid to the budget (the paper: 2 x 2, 576 -> 144)."""

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

# A grid cut into exactly k cells of nearly equal size: what uniform, pooling and window methods share.


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


def tile_shapes(context: SelectionContext, pool: int) -> Sequence[tuple[int, int]]:
    """(rows, columns) of each tile of a pool. After an earlier stage the grid has holes: what is left, in
    reading order, then serves as a grid of one row."""
    if context.grid_shapes is None or context.pools.sizes[pool] != context.pools.original[pool]:
        return [(1, context.pools.sizes[pool])]
    return context.grid_shapes[pool]


def cells_of(context: SelectionContext, wanted: Sequence[int]) -> Tensor:
    """[R, N] long: the cell of each token of each pool, `wanted` cells a pool, -1 for none (and padding)."""
    out = torch.full(context.valid.shape, -1)
    for pool, number in enumerate(wanted):
        shapes = tile_shapes(context, pool)
        parts, first = [], 0
        for (rows, columns), cells in zip(shapes, split_budget(number, [r * c for r, c in shapes]), strict=True):
            none = torch.full((rows * columns,), -1)
            parts.append(grid_cells(rows, columns, cells) + first if cells else none)
            first += cells
        cell = torch.cat(parts)
        out[pool, : len(cell)] = cell
    return out


def cell_centers(cells: Tensor) -> Tensor:
    """cells [R, N] -> [R, N] long: the place of the middle token of each token's cell (itself where none)."""
    order = torch.argsort(cells, dim=1, stable=True)
    ranked = cells.gather(1, order)
    places = torch.arange(cells.shape[1])
    out = places.expand_as(cells).clone()
    for pool in range(cells.shape[0]):
        _, group, counts = torch.unique_consecutive(ranked[pool], return_inverse=True, return_counts=True)
        middle = order[pool][(torch.cumsum(counts, 0) - counts + counts // 2)[group]]
        out[pool, order[pool]] = torch.where(ranked[pool] >= 0, middle, order[pool])
    return out


# Uniform grid: the middle token of each of `keep` equal cells.


@dataclass(frozen=True, kw_only=True)
class UniformGrid(Reducer):
    """Looks at no content at all: the spatial control for every method that does."""

    name: ClassVar[str] = "uniform"
    requires: ClassVar[frozenset[str]] = frozenset({"grid"})

    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        cells = cells_of(context, self.counts(context.pools))
        chosen = (cell_centers(cells) == torch.arange(cells.shape[1])) & (cells >= 0)
        return upload(chosen, context.valid.device) & context.valid


@dataclass(frozen=True, kw_only=True)
class Pooling(UniformGrid):
    """The uniform grid whose kept tokens take in their cell: its mean stands at its middle."""

    name: ClassVar[str] = "pooling"

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor:
        return upload(cell_centers(cells_of(context, self.counts(context.pools))), keep.device)
