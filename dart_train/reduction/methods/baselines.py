"""Importance against duplication: the two criteria of the papers in one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Reducer, ScoreReducer, check_int_at_least, check_unit_interval
from ..context import SelectionContext

# Keep-all: the reduction's machinery with nothing dropped; every law is measured against it.


@dataclass(frozen=True, kw_only=True)
class KeepAll(Reducer):
    """Ignores its budget."""

    name: ClassVar[str] = "keep_all"

    def count(self, size: int, budget: int, prompt: int) -> int:
        return size

    def select(self, context: SelectionContext) -> Tensor:
        return context.valid

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor | None:
        return None


# Fewer pixels: the image made small enough that the encoder itself gives about the budget's tokens.


@dataclass(frozen=True, kw_only=True)
class FewerPixels(KeepAll):
    """The baseline that many methods lose to (VTC-Bench). It works at the processor (`dart_train.models.resize`);
    inside the language model everything that comes in is kept."""

    name: ClassVar[str] = "fewer_pixels"


# Random: uniform, seeded. Often stronger than it looks.


@dataclass(frozen=True, kw_only=True)
class Random(ScoreReducer):
    """The choice depends on the seed, the prompt and the token's place only, so that it is the same on every
    rank, in every batch, and when a layer is recomputed."""

    name: ClassVar[str] = "random"

    seed: int = 0

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_int_at_least("seed", self.seed, 0)]

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        return context.uniform(self.seed).gather(1, context.pools.slots)


@dataclass(frozen=True, kw_only=True)
class Balance(ScoreReducer):
    """alpha * importance + (1 - alpha) * (1 - similarity), each min-max normalised over the pool.

    importance: FastV's score. similarity: cosine to the last prompt token.
    alpha 1 is FastV; alpha 0 looks at similarity alone.
    """

    name: ClassVar[str] = "balance"
    requires: ClassVar[frozenset[str]] = frozenset({"attention"})

    alpha: float = 0.5

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_unit_interval("alpha", self.alpha)]

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        similarity = context.cosine(context.pools.last[:, None])[:, 0]
        importance = min_max(context.visual("attention"), context.valid)
        return self.alpha * importance + (1 - self.alpha) * (1 - min_max(similarity, context.valid))


def min_max(x: Tensor, valid: Tensor) -> Tensor:
    """x [R, N] to [0, 1] over the valid entries of each row."""
    low = x.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = x.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)
