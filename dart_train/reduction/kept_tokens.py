"""What was kept of each row, how any tensor follows it, and what becomes of dropped tokens that are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptTokens:
    """Slot (b, s) of the short sequence holds position `index[b, s]` of the long one, where `valid[b, s]`.

    Rows that keep fewer tokens than the longest are padded on the LEFT, so that `[:, -1]` stays the last
    token, in training as in generation.
    """

    index: Tensor  # [B, S] long
    valid: Tensor  # [B, S] bool
    ragged: bool  # some slot is padding (known on the host: no synchronisation to ask)
    source_length: int  # L
    keeps_all: bool = False  # everything is kept, so that nothing has to move

    @classmethod
    def of(cls, keep: Tensor, counts: Sequence[int]) -> KeptTokens:
        """keep [B, L] bool; counts: the number of kept tokens of each row, known on the host."""
        if min(counts) == keep.shape[1]:
            order = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
            return cls(order, torch.ones_like(keep), False, keep.shape[1], keeps_all=True)
        longest = max(counts)
        order = torch.argsort(keep.to(torch.uint8), dim=1, stable=True)
        index = order[:, keep.shape[1] - longest :]
        return cls(index, keep.gather(1, index), min(counts) != longest, keep.shape[1])

    @property
    def length(self) -> int:
        return self.index.shape[1]

    def gather(self, x: Tensor, dim: int = 1, batch: int = 0) -> Tensor:
        """The slots' entries of x along `dim`; x has the batch (or 1) at `batch`, and L at `dim` after it."""
        if self.keeps_all:
            return x
        dim, rows = dim % x.ndim, self.index.shape[0]
        if x.shape[batch] != rows:
            x = x.expand(*(rows if d == batch else n for d, n in enumerate(x.shape)))
        shape = [rows if d == batch else self.length if d == dim else 1 for d in range(x.ndim)]
        index = self.index.to(x.device).view(shape)
        return x.gather(dim, index.expand(*(self.length if d == dim else n for d, n in enumerate(x.shape))))

    def compose(self, later: KeptTokens) -> KeptTokens:
        """This reduction followed by another one of its short sequence, of whose padding it keeps none, as one."""
        if later.keeps_all:
            return self
        return KeptTokens(later.gather(self.index), later.valid, later.ragged, self.source_length)

    def mask(self) -> Tensor:
        """[B, L] bool: which positions of the long sequence were kept."""
        kept = torch.zeros(self.index.shape[0], self.source_length, dtype=torch.bool, device=self.index.device)
        return kept.scatter(1, self.index, self.valid)

    def expand(self, short: Tensor) -> Tensor:
        """Back to full length [B, L, ...]: each dropped place repeats the last kept one before it.

        A target whose predecessor was dropped is thereby predicted from the same state as in the short
        sequence, so that both output modes give the same loss.
        """
        if self.keeps_all:
            return short
        padding = (~self.valid).sum(1, keepdim=True)
        slot = (self.mask().long().cumsum(1) - 1 + padding).clamp_min(0).clamp_max(self.length - 1)
        slot = slot.view(*slot.shape, *[1] * (short.ndim - 2)).expand(-1, -1, *short.shape[2:])
        return short.gather(1, slot.to(short.device))


def average_merged(visual: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """visual [R, N, D], targets [R, N] (the kept token that each token is merged into) -> [R, N, D], the mean at each
    kept token; differentiable. In float32: a sum of many tokens in bfloat16 stops growing."""
    weight = valid.float()
    into = targets[..., None].expand_as(visual)
    total = torch.zeros(visual.shape, device=visual.device).scatter_add(1, into, visual.float() * weight[..., None])
    number = torch.zeros_like(weight).scatter_add(1, targets, weight).clamp_min(1)
    return (total / number[..., None]).to(visual.dtype)
