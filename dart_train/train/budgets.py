"""The budget of each step put on the model, and for a moment the teacher's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..attach import Attached
from ..budget import Keep
from ..recipe import Recipe
from ..schedule import keep_at, teacher_keep


class Budgets:
    """`steps`: optimizer steps of the whole run."""

    def __init__(self, recipe: Recipe, attached: Attached | None, steps: int, visual_ids: Sequence[int] = ()) -> None:
        self.recipe, self.attached, self.steps, self.visual_ids = recipe, attached, steps, visual_ids
        self.served = [reducer.keep for reducer in recipe.reduction.reducers()]
        self.drawn: list[Keep] = list(self.served)

    def begin(self, step: int) -> None:
        """Collective under ZeRO-3, where the final norm's weight is gathered."""
        if self.attached is None:
            return
        schedule, seed = self.recipe.reduction.schedule, self.recipe.train.seed
        self.drawn = [keep_at(schedule, served, step, self.steps, seed) for served in self.served]
        self.attached.set_keep(*self.drawn)
        self.attached.seed = seed + step
        self.attached.refresh()

    @contextmanager
    def set_to(self, *keep: Keep) -> Iterator[None]:
        """Other budgets for a while."""
        if self.attached is None:
            yield
            return
        before = [reducer.keep for reducer in self.attached.reducers]
        self.attached.set_keep(*keep)
        try:
            yield
        finally:
            self.attached.set_keep(*before)

    def teaching(self, step: int, batch: Mapping[str, Any]) -> list[Keep]:
        """What the teacher of this batch keeps, stage by stage."""
        visual = self._visual(batch)
        return [teacher_keep(self.recipe.distill, keep, visual, step, self.steps) for keep in self.drawn]

    def _visual(self, batch: Mapping[str, Any]) -> int:
        """Visual tokens of the sample that has most, asked of the host."""
        ids = batch["input_ids"]
        return int(torch.isin(ids, torch.tensor(list(self.visual_ids))).sum(1).max())

    def told(self) -> dict[str, float]:
        """For the line of metrics: a ratio, or a number of tokens."""
        names = ["keep"] if len(self.drawn) == 1 else [f"keep_{i}" for i in range(len(self.drawn))]
        return {name: float(keep) for name, keep in zip(names, self.drawn, strict=True)}
