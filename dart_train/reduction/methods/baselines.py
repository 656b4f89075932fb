"""What every method is compared with: all tokens, a smaller image, random tokens, and a mix of two criteria."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Reducer, ScoreReducer, check_int_at_least, check_unit_interval
from ..context import SelectionContext


@dataclass(frozen=True, kw_only=True)
class KeepAll(Reducer):
    """The hooks in place and nothing dropped, whatever the budget: every law is measured against it."""

    name: ClassVar[str] = "keep_all"

    def count(self, size: int, budget: int, prompt: int) -> int:
        return size

    def select(self, context: SelectionContext) -> Tensor:
        return context.valid

    def merge_targets(self, context: SelectionContext, keep: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True, kw_only=True)
class FewerPixels(KeepAll):
    """The image is made so small that the encoder itself gives about the budget's tokens: the baseline that many
    methods lose to (VTC-Bench). It works at the processor (`dart_train.models.resize`); inside the language model all
    tokens are kept."""

    name: ClassVar[str] = "fewer_pixels"


@dataclass(frozen=True, kw_only=True)
class Random(ScoreReducer):
    """Uniform and seeded; often stronger than expected. The selection depends on the seed, the prompt and the token's
    place only, so that it is the same on every rank, in every batch, and when a layer is recomputed.

    seed: of the draw.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_int_at_least("seed", self.seed, 0)]

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        return context.uniform(self.seed).gather(1, context.groups.slots)


@dataclass(frozen=True, kw_only=True)
class Balance(ScoreReducer):
    """Importance against duplication: alpha * importance + (1 - alpha) * (1 - similarity), each min-max normalised over
    the group.

    Importance is FastV's score, similarity the cosine to the last prompt token.
    alpha: weight of the importance; 1 is FastV, 0 looks at similarity alone.
    """

    name: ClassVar[str] = "balance"
    requires: ClassVar[frozenset[str]] = frozenset({"attention"})

    alpha: float = 0.5

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_unit_interval("alpha", self.alpha)]

    @torch.no_grad()
    def score(self, context: SelectionContext) -> Tensor:
        similarity = context.cosine(context.groups.last[:, None])[:, 0]
        importance = min_max(context.visual("attention"), context.valid)
        return self.alpha * importance + (1 - self.alpha) * (1 - min_max(similarity, context.valid))


def min_max(x: Tensor, valid: Tensor) -> Tensor:
    """x [R, N] to [0, 1] over the valid entries of each row."""
    low = x.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    high = x.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)
