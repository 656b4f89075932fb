"""Attention as the criterion: FastV, the same upside down, and FastV inside windows of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Reducer, ScoreReducer, check_choice, check_int_at_least
from ..budget import split_budget
from ..context import SelectionContext, per_group_tensor
from ..token_groups import upload
from .grid import cells_of


@dataclass(frozen=True, kw_only=True)
class FastV(ScoreReducer):
    """Attention of the last prompt token, mean over heads; the highest are kept.

    Only that one row of attention is computed, in addition to the fast kernel.

    row: of attention, in the layer before K (previous), or in layer K itself (own), whose queries and keys are then
    computed once more, for all tokens. `own` sees one layer further. How good it is depends on where a model looks at
    its images: on `data/tiny_base` it is nearly as good as the attention of all later layers, because text there was
    kept from attending to the image in its first two layers while it learned.
    """

    name: ClassVar[str] = "fastv"
    requires: ClassVar[frozenset[str]] = frozenset({"attention"})

    row: Literal["previous", "own"] = "previous"

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_choice("row", self.row, ("previous", "own"))]

    def required_inputs(self) -> frozenset[str]:
        return frozenset({"own_attention"}) if self.row == "own" else self.requires

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        return context.visual("attention")


@dataclass(frozen=True, kw_only=True)
class ReverseFastV(FastV):
    """Keeps the visual tokens with the lowest attention: a test of whether the attention criterion means anything.

    Built from the method's name and its place in the comparison tables; the body of the paper that
    introduces it was not available.
    """

    name: ClassVar[str] = "reverse_fastv"

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        return -context.visual("attention")


@dataclass(frozen=True, kw_only=True)
class WindowFastV(Reducer):
    """FastV with the same ratio in each window of the image. Attention favours late positions; windows do not let it
    keep only those.

    windows: into how many windows a group's grid is cut.
    """

    name: ClassVar[str] = "window_fastv"
    requires: ClassVar[frozenset[str]] = frozenset({"attention", "grid"})

    windows: int = 16

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_int_at_least("windows", self.windows, 1)]

    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        window = windows_of(context, self.windows)
        quota = [_quotas(row, kept) for row, kept in zip(window, self.counts(context.groups), strict=True)]
        widest = max(map(len, quota))
        allowed = per_group_tensor([q + [0] * (widest - len(q)) for q in quota], context.valid)
        window = upload(window, context.valid.device).clamp_min(0)
        rank = rank_within(window, context.visual("attention").masked_fill(~context.valid, -torch.inf))
        return (rank < allowed.gather(1, window)) & context.valid


def windows_of(context: SelectionContext, number: int) -> Tensor:
    """[R, N] long, -1 for padding. Tiles too small for a window of their own share one more."""
    window = cells_of(context, [min(number, size) for size in context.groups.sizes])
    for row, size in zip(window, context.groups.sizes, strict=True):
        row[:size][row[:size] < 0] = row.max() + 1
    return window


def _quotas(window: Tensor, kept: int) -> list[int]:
    return split_budget(kept, torch.bincount(window[window >= 0]).tolist())


def rank_within(group: Tensor, score: Tensor) -> Tensor:
    """[R, N] long: how many of the same group have a higher score (ties: the earlier token first)."""
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    order = order.gather(1, torch.argsort(group.gather(1, order), dim=1, stable=True))
    sorted_group = group.gather(1, order)
    place = torch.arange(group.shape[1], device=group.device).expand_as(group)
    new = torch.ones_like(group, dtype=torch.bool)
    new[:, 1:] = sorted_group[:, 1:] != sorted_group[:, :-1]
    start = torch.where(new, place, 0).cummax(1).values
    return torch.empty_like(place).scatter(1, order, place - start)
