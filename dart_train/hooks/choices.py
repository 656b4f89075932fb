"""Which visual tokens the rows of a forward kept, and forwards that keep the same ones again.

A choice depends on weights: those of the layers before the reduction, and those that a method looks at. Where one row
runs through several forwards with different weights (the rollout of a policy, its reference, its updates), each would
choose for itself. `Attached.one_choice` makes them share the choice of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowChoices:
    """kept [B, S, V] bool: whether stage s kept the v-th visual token of a row, wherever padding puts it; visual [B]
    long: the number of visual tokens of each row."""

    kept: Tensor
    visual: Tensor

    @classmethod
    def of(cls, visual: Tensor, stages: Sequence[Tensor]) -> RowChoices:
        """visual [B, L] bool; stages: for each the mask [B, L] of what it kept."""
        counts = visual.sum(1)
        places, exists = _places(visual, counts, int(counts.max()))
        kept = torch.stack([stage.gather(1, places) & exists for stage in stages], 1)
        return cls(kept, counts)

    def __len__(self) -> int:
        return len(self.visual)

    def rows(self, start: int, stop: int) -> RowChoices:
        return RowChoices(self.kept[start:stop], self.visual[start:stop])

    def masks(self, visual: Tensor) -> Tensor:
        """visual [B, L] bool of the same rows, padded in any way -> [B, S, L] bool. Raises ValueError for others."""
        counts = visual.sum(1)
        if not torch.equal(counts.cpu(), self.visual.cpu()):
            raise ValueError(
                f"a choice of rows with {self.visual.tolist()} visual tokens was given for rows with "
                f"{counts.tolist()}: the rows of the forward are not those that the choice was made for"
            )
        places, exists = _places(visual, counts, self.kept.shape[2])
        kept = self.kept.to(visual.device) & exists[:, None]
        full = torch.zeros(len(visual), self.kept.shape[1], visual.shape[1], dtype=torch.bool, device=visual.device)
        return full.scatter(2, places[:, None].expand_as(kept), kept)

    def differing(self, other: RowChoices) -> int:
        """The number of rows whose kept tokens are not those of `other`, at any stage."""
        width = max(self.kept.shape[2], other.kept.shape[2])
        mine, theirs = (torch.nn.functional.pad(each.kept, (0, width - each.kept.shape[2])) for each in (self, other))
        return int((mine != theirs.to(mine.device)).flatten(1).any(1).sum())


def _places(visual: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """[B, most] long: positions of the visual tokens in order; [B, most] bool: which of them exist. A row with fewer
    positions than `most` repeats its first."""
    order = torch.argsort(visual.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
    if order.shape[1] < most:
        order = torch.cat([order, order[:, :1].expand(-1, most - order.shape[1])], 1)
    return order, torch.arange(most, device=visual.device) < counts[:, None]


class SharedChoice:
    """The choice that several forwards share. choices: made before, or None: those of the first forward. Forwards may
    have a part of the rows each, in order. `rows`: rows of forwards after the choice was made; `differing`: those that
    kept other tokens, which only happens where the choice is not enforced."""

    def __init__(self, choices: RowChoices | None = None, enforced: bool = True) -> None:
        self.choices, self.enforced = choices, enforced
        self.rows = self.differing = 0
        self._next = 0

    def take(self, rows: int) -> RowChoices | None:
        """Those of the next `rows` rows; after the last row, the first again. None: the choice is still to be made."""
        if self.choices is None:
            return None
        start = self._next
        self._next = 0 if start + rows >= len(self.choices) else start + rows
        return self.choices.rows(start, start + rows)

    def compare(self, expected: RowChoices | None, kept: RowChoices) -> None:
        """After a forward: what it kept, and what it was to keep."""
        if expected is None:
            self.choices = kept
            return
        self.rows += int((kept.visual > 0).sum())
        self.differing += kept.differing(expected)
