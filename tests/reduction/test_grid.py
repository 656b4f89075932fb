"""Grids cut into cells: uniform grid, pooling and windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dart_train.reduction import Pooling, Reducer, SelectionContext, UniformGrid, WindowFastV
from dart_train.reduction.kept_tokens import average_merged
from dart_train.reduction.methods.grid import cells_of, grid_cells
from tests.reduction.scenes import Scene


def tiled(reducer: Reducer, *tiles: tuple[int, int], dtype: torch.dtype = torch.float32) -> SelectionContext:
    """One image of these tiles, and a smaller one in the same batch."""
    size = sum(rows * columns for rows, columns in tiles)
    context = Scene(("t" + "v" * size + "ttt", "v" * 4 + "t"), dtype=dtype).context(reducer)
    return replace(context, grid_shapes=[list(tiles), [(2, 2)]])


@settings(max_examples=150, deadline=None)
@given(rows=st.integers(1, 14), columns=st.integers(1, 14), part=st.floats(0.001, 1))
def test_grid_is_cut_into_the_exact_number_of_connected_cells(rows: int, columns: int, part: float) -> None:
    wanted = max(1, round(rows * columns * part))
    cells = grid_cells(rows, columns, wanted).view(rows, columns)
    assert cells.unique().tolist() == list(range(wanted))
    sizes = torch.bincount(cells.flatten())
    assert sizes.max() <= 4 * sizes.min()  # at most twice as wide, and twice as high
    for cell in range(wanted):
        down, right = (cells == cell).nonzero(as_tuple=True)
        box = (down.max() - down.min() + 1) * (right.max() - right.min() + 1)
        assert box == len(down)  # a full rectangle


@pytest.mark.parametrize(("side", "cells"), [(24, 144), (24, 64), (24, 36), (24, 576), (8, 16), (6, 1)])
def test_square_numbers_give_square_cells(side: int, cells: int) -> None:
    block = side // round(cells**0.5)
    cut = grid_cells(side, side, cells).view(side, side)
    assert torch.equal(cut, cut[::block, ::block].repeat_interleave(block, 0).repeat_interleave(block, 1))


def test_uniform_grid_takes_the_middle_of_each_cell() -> None:
    context = tiled(UniformGrid(keep=4), (6, 6))
    kept = UniformGrid(keep=4).select(context)[0].view(6, 6)
    assert kept.nonzero().tolist() == [[1, 1], [1, 4], [4, 1], [4, 4]]


def test_uniform_grid_splits_its_budget_over_tiles_by_size() -> None:
    reducer = UniformGrid(keep=11)
    kept = reducer.select(tiled(reducer, (4, 4), (4, 7)))[0]
    assert kept[:16].sum() == 4 and kept[16:].sum() == 7


def pooled(context: SelectionContext, reducer: Reducer) -> Tensor:
    """The values at the kept places of the first group after merging."""
    keep = reducer.select(context)
    content = reducer.merge_targets(context, keep)
    assert content is not None
    return average_merged(context.groups.gather(context.states), content, context.valid)[0][keep[0]]


def test_pooling_is_average_pooling() -> None:
    """The paper's 2 x 2: 576 tokens become 144."""
    context = tiled(Pooling(keep=144), (24, 24))
    image = context.states[0, 1:577].T.reshape(1, -1, 24, 24)
    wanted = avg_pool2d(image, 2)[0].flatten(1).T
    assert torch.allclose(pooled(context, Pooling(keep=144)), wanted, atol=1e-6)


def test_pooling_loses_nothing_on_any_grid() -> None:
    """Each token is in one cell: means weighted by the cells' sizes give the mean of all."""
    reducer = Pooling(keep=9)
    context = tiled(reducer, (5, 7), (3, 4))
    sizes = torch.bincount(cells_of(context, [9, 4])[0])
    total = (pooled(context, reducer) * sizes[:, None]).sum(0)
    assert torch.allclose(total, context.states[0, 1:48].sum(0), atol=1e-5)


@pytest.mark.parametrize("tiles", [[(6, 6)], [(4, 4), (4, 5)], [(1, 1), (6, 6)], [(2, 2)] * 9, [(1, 1)] * 20])
@pytest.mark.parametrize("keep", [1, 7, 19])
@pytest.mark.parametrize("windows", [1, 4, 16])
def test_windows_keep_their_best(tiles: list[tuple[int, int]], keep: int, windows: int) -> None:
    reducer = WindowFastV(keep=keep, windows=windows)
    context = tiled(reducer, *tiles)
    size = context.groups.sizes[0]
    cells = cells_of(context, [min(windows, size), 4])[0, :size].tolist()
    score = context.visual("attention")[0].tolist()
    kept = set(reducer.select(context)[0].nonzero().flatten().tolist())
    assert len(kept) == keep
    for window in set(cells):
        inside = [place for place in range(size) if cells[place] == window]
        best = sorted(inside, key=lambda place: -score[place])
        mine = len(kept & set(inside))
        assert kept & set(inside) == set(best[:mine])
        assert abs(mine - keep * len(inside) / size) < 1  # the same ratio in each


def test_one_window_is_fastv_and_as_many_as_tokens_is_uniform() -> None:
    late = torch.arange(36.0)  # attention favours late positions
    for windows, wanted in ((1, list(range(27, 36))), (9, [7, 9, 11, 19, 21, 23, 31, 33, 35])):
        reducer = WindowFastV(keep=9, windows=windows)
        context = tiled(reducer, (6, 6))
        context.scores["attention"] = torch.zeros(2, 40).index_add(1, torch.arange(1, 37), late.expand(2, -1))
        assert reducer.select(context)[0].nonzero().flatten().tolist() == wanted


@pytest.mark.parametrize("method", [UniformGrid, Pooling, WindowFastV])
def test_after_an_earlier_stage_the_grid_is_one_row(method: type[Reducer]) -> None:
    """The grid has holes then."""
    reducer = method(keep=3)
    context = tiled(reducer, (4, 3))
    fewer = replace(context.groups, original=(20, 4))
    assert reducer.select(replace(context, pools=fewer)).sum(1).tolist() == [3, 3]
    assert torch.equal(cells_of(replace(context, pools=fewer), [3, 4])[0], torch.arange(12) // 4)
