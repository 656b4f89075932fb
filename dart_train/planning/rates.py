"""What any micro-batch costs, once a layer, the tower and the head are known: in seconds, or in FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..profiling.flops import QuadraticCost
from ..profiling.timing import Timing
from .work import Work

_FORWARD = 1 / 3  # of a head's forward and backward


@dataclass(frozen=True)
class Rates:
    """layer: of a decoder layer in training, what checkpointing computes again included; forward: of a teacher's; both
    by rows and length. head: by targets. tower: of a visual token. choice: of a row with pictures.
    other: of a micro-batch: embedding, masks, Python. optimizer: of a step. tower_saved: bytes kept for a visual token.
    """

    layer: QuadraticCost
    forward: QuadraticCost
    head: QuadraticCost
    tower: float
    choice: float = 0.0
    other: float = 0.0
    optimizer: float = 0.0
    tower_saved: float = 0.0
    timings: Mapping[str, Timing] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, work: Work, teacher: Work | None = None) -> dict[str, np.ndarray]:
        """[micro-batches] by what it is spent on."""
        found = {
            "vision tower": work.pixels * self.tower,
            "decoder layers": self._layers(work, self.layer),
            "head and loss": self.head(1, work.learnt),
            "choice of tokens": self._choice(work),
            "other": np.full(len(work.rows), self.other),
        }
        if teacher is not None:
            layers, head = self._layers(teacher, self.forward), self.head(1, work.learnt) * _FORWARD
            found["teacher"] = layers + head + self._choice(teacher)  # the tower runs once for both
        return found

    @staticmethod
    def _layers(work: Work, layer: QuadraticCost) -> np.ndarray:
        return np.asarray(sum(number * layer(work.rows, lengths) for number, lengths in work.stages))

    def _choice(self, work: Work) -> np.ndarray:
        return np.where((work.visual > 0) & work.reduced, work.rows, 0) * self.choice

    def step(self, work: Work, accumulation: int, ranks: int = 1, teacher: Work | None = None) -> dict[str, float]:
        """Mean of an optimizer step. Ranks wait for the slowest of them; the way between them is not counted."""
        parts = self.of(work, teacher)
        together = np.asarray(sum(parts.values()))
        waiting = together.reshape(-1, ranks).max(1).mean() - together.mean() if ranks > 1 else 0.0
        found = {name: float(cost.mean()) * accumulation for name, cost in parts.items()}
        return {**found, "waiting for other ranks": float(waiting) * accumulation, "optimizer": self.optimizer}
