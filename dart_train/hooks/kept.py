"""What a forward kept, as `Attached.last` gives it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .forward_state import ForwardState


@dataclass(frozen=True)
class Kept:
    """What a forward kept.

    mask [B, L] bool: kept tokens after the last stage, text included; visual [B, L] bool: visual tokens of the input;
    stages: the mask after each stage; visual_before, visual_after: numbers per sample, on the host; length: of the
    reduced sequence; pivots [B, L] bool: image and text tokens that the last stage's selection started from, None
    where its method has none; scored [B, L] bool: visual tokens that the last stage kept for the scores of a trained
    scorer, None where it has no scorer.
    """

    mask: Tensor
    visual: Tensor
    stages: tuple[Tensor, ...]
    visual_before: tuple[int, ...]
    visual_after: tuple[int, ...]
    length: int
    pivots: Tensor | None = None
    scored: Tensor | None = None

    @classmethod
    def of(cls, state: ForwardState) -> Kept:
        layout, groups, last = state.plan.layout, state.groups, state.stages[-1]
        assert layout is not None and groups is not None
        masks = tuple(stage.kept.mask() for stage in state.stages)
        after, seen = [0] * layout.shape[0], state.plan.visual
        for row, number in zip(groups.row_of, last.visual_counts, strict=True):
            after[row] += number
        pivots = None
        if last.pivots is not None:
            places, count = last.pivots
            pivots = torch.zeros_like(masks[-1])
            pivots[groups.rows[:, None].expand_as(places)[count], places[count]] = True
        scored = None
        if last.scores is not None and last.scores.kept is not None:
            chosen, places = last.scores.kept, last.scores.positions
            scored = torch.zeros_like(masks[-1])
            scored[groups.rows[:, None].expand_as(places)[chosen], places[chosen]] = True
        before = tuple(layout.visual.sum(1).tolist())
        assert seen is not None
        return cls(masks[-1], seen, masks, before, tuple(after), last.kept.length, pivots, scored)

    @property
    def kept_visual(self) -> Tensor:
        """[B, L] bool."""
        return self.mask & self.visual
