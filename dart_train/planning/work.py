"""What each micro-batch has to compute: rows, lengths layer by layer, pictures, targets. Arrays over micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..reduction import FewerPixels, Reducer
from .rows import Rows

Stage = tuple[int, np.ndarray]  # decoder layers, the padded length [n] that they run at


@dataclass(frozen=True)
class Work:
    rows: np.ndarray
    stages: tuple[Stage, ...]
    pixels: np.ndarray  # visual tokens that the vision tower makes
    visual: np.ndarray  # visual tokens that come in, before and
    kept: np.ndarray  # behind the reduction
    text: np.ndarray
    learnt: np.ndarray
    reduced: bool  # a reduction is attached, whatever it keeps

    @property
    def longest(self) -> int:
        """The micro-batch with the most tokens over all layers."""
        return int(np.argmax(self.rows * sum(layers * lengths for layers, lengths in self.stages)))

    def padded(self, at: int) -> bool:
        """Whether rows of micro-batch `at` differ in length: kernels then get a mask, and keep it."""
        return bool(self.rows[at] * self.stages[0][1][at] > self.text[at] + self.visual[at])


class StepWorkload:
    """The micro-batches of a run, at any budget."""

    def __init__(self, rows: Rows, batches: np.ndarray, depth: int, multiple: int | None) -> None:
        self.data, self.batches, self.depth, self.multiple = rows, batches, depth, multiple or 1
        self.text, self.visual, self.learnt = rows.text, rows.visual, rows.learnt

    def of(self, reducers: Sequence[Reducer] = ()) -> Work:
        kept = list(self.data.kept(*reducers)) if reducers else []
        layers = [0 if isinstance(reducer, FewerPixels) else reducer.layer for reducer in reducers]
        shrunk = bool(reducers) and isinstance(reducers[0], FewerPixels)
        return self._of(kept, layers, kept[0] if shrunk else self.visual)

    def at(self, share: float, layer: int, shrunk: bool = False) -> Work:
        """With `share` of the visual tokens kept, at whatever precision, from `layer` on."""
        kept = self.visual * share
        return self._of([kept], [layer], kept if shrunk else self.visual)

    def _of(self, kept: Sequence[np.ndarray], layers: Sequence[int], pixels: np.ndarray) -> Work:
        ends = [*layers, self.depth]
        seen = [self.visual, *kept]
        stages = [(ends[0], self._padded(self.text + seen[0], self.multiple))]
        for i, visual in enumerate(kept):
            stages.append((ends[i + 1] - ends[i], self._padded(self.text + np.minimum(visual, seen[i]), 1)))
        total = self._summed
        return Work(
            rows=total(self.text > 0),
            stages=tuple((number, lengths) for number, lengths in stages if number),
            pixels=total(pixels),
            visual=total(self.visual),
            kept=total(seen[-1]),
            text=total(self.text),
            learnt=total(self.learnt),
            reduced=bool(kept),
        )

    def _padded(self, lengths: np.ndarray, multiple: int) -> np.ndarray:
        longest = lengths[self.batches].max(1)
        return -(-longest // multiple) * multiple if multiple > 1 else longest

    def _summed(self, values: np.ndarray) -> np.ndarray:
        return values[self.batches].sum(1)
