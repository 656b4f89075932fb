"""Importance against duplication: the two criteria of the papers in one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ScoreReducer, check_unit
from .view import View


@dataclass(frozen=True, kw_only=True)
class Balance(ScoreReducer):
    """alpha * importance + (1 - alpha) * (1 - similarity), each min-max normalised over the pool.

    importance: FastV's score. similarity: cosine to the last prompt token.
    alpha 1 is FastV; alpha 0 looks at similarity alone.
    """

    name: ClassVar[str] = "balance"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    alpha: float = 0.5

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_unit("alpha", self.alpha)]

    @torch.no_grad()
    def score(self, view: View) -> Tensor:
        similarity = view.cosine(view.pools.last[:, None])[:, 0]
        importance = min_max(view.visual("attention"), view.valid)
        return self.alpha * importance + (1 - self.alpha) * (1 - min_max(similarity, view.valid))


def min_max(x: Tensor, valid: Tensor) -> Tensor:
    """x [R, N] to [0, 1] over the valid entries of each row."""
    low = x.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = x.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)
