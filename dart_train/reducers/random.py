"""Random: uniform, seeded. Often stronger than it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ScoreReducer, check_whole
from .view import View


@dataclass(frozen=True, kw_only=True)
class Random(ScoreReducer):
    """The choice depends on the seed, the prompt and the token's place only, so that it is the same on every
    rank, in every batch, and when a layer is recomputed."""

    name: ClassVar[str] = "random"

    seed: int = 0

    def problems(self) -> list[str | None]:
        return [*super().problems(), check_whole("seed", self.seed, 0)]

    @torch.no_grad()
    def score(self, view: View) -> Tensor:
        return view.uniform(self.seed).gather(1, view.pools.slots)
