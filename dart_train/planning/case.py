"""One recipe on one kind of machine: its model without weights, its rows, and what every budget has to compute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ..config import Recipe
from ..data.encoder import Encoder
from ..data.sampler import steps_for
from ..models.processors import load_processor
from ..models.structure import unwrap
from ..profiling.flops import QuadraticCost, flop_rates, patches_in
from ..reduction import FewerPixels, Reducer
from ..reduction.schedule import teacher_keep
from .batch import encoded
from .budgets import Budget, budgets_of
from .measure import measure
from .payoff import breaks_even
from .rates import Rates
from .rows import Rows, batches, read_rows
from .setup import Setup
from .work import StepWorkload, Work

_FULL = Budget("full", (), 0.0)


@dataclass(frozen=True)
class Load:
    """What a budget has to compute, and its teacher, where there is one."""

    budget: Budget
    work: Work
    teacher: Work | None


@dataclass(frozen=True)
class Case:
    setup: Setup
    model: Any
    rows: Rows
    workload: StepWorkload
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, ranks: int | None, rows: int, device: torch.device) -> Case:
        setup = Setup.of(recipe, ranks)
        model = setup.skeleton()
        processor = load_processor(recipe.model.path, trust_remote_code=recipe.model.trust_remote_code)
        found = read_rows(recipe, Encoder(processor, recipe.data.max_length, recipe.data.on_too_long), rows)
        depth = unwrap(model).config.get_text_config().num_hidden_layers
        drawn = batches(found, recipe, setup.ranks)
        return cls(setup, model, found, StepWorkload(found, drawn, depth, recipe.data.pad_to_multiple_of), device)

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def config(self) -> Any:
        return unwrap(self.model).config

    @cached_property
    def reducers(self) -> list[Reducer]:
        """As served."""
        return self.recipe.reduction.reducers()

    @cached_property
    def steps(self) -> int:
        train = self.recipe.train
        if train.max_steps is not None:
            return train.max_steps
        assert self.rows.totals is not None and train.epochs is not None  # a streamed source needs max_steps
        order = self.rows.order(self.recipe, self.rows.totals)
        shape = train.per_device_batch_size, self.setup.ranks, train.gradient_accumulation_steps
        return max(1, steps_for(order, train.epochs, *shape))

    @cached_property
    def full(self) -> Load:
        """No reduction, and nobody to learn from but the answers."""
        return Load(_FULL, self.workload.of(), None)

    @cached_property
    def loads(self) -> list[Load]:
        """One for each budget that the schedule draws; none without a reduction."""
        found = budgets_of(self.recipe, self.steps)
        return [Load(budget, self.workload.of(budget.reducers), self._teacher(budget)) for budget in found]

    def _teacher(self, budget: Budget) -> Work | None:
        """In the middle of the run."""
        distill, most = self.recipe.distill, int(self.full.work.visual.max())
        if not distill.enabled:
            return None
        keeps = [teacher_keep(distill, r.keep, most, self.steps // 2, self.steps) for r in budget.reducers]
        work = self.workload.of([replace(r, keep=keep) for r, keep in zip(budget.reducers, keeps, strict=True)])
        return replace(work, stages=work.stages[-len(keeps) :])  # the layers before the reduction run once for both

    def seconds(self, limit: float) -> Rates:
        """Timed on this device; limit: for each call, in all its repeats."""
        trained = sum(w.numel() for w in self.model.parameters() if w.requires_grad)
        works = [load.work for load in (self.full, *self.loads)]
        return measure(self.config, self.setup, self.workload, works, self.device, limit, trained)

    def flops(self) -> Rates:
        modes = {name: part.mode for name, part in self.recipe.parts.named().items()}
        checkpointing, patches = self.recipe.train.gradient_checkpointing, self._patches_per_token()
        found = flop_rates(self.model, modes, checkpointing, patches, self.setup.one_layer(self.config))
        return Rates(found.layer, found.forward, QuadraticCost(token=found.head), found.tower)

    def _patches_per_token(self) -> float:
        """Of the first row with a picture."""
        number = next((n for n, row in enumerate(self.rows.rows) if sum(row.visual)), None)
        if number is None:
            return 0.0
        batch = encoded(self.rows, [number], self.setup, torch.device("cpu"))
        return patches_in(batch["pixel_values"], self.config) / sum(self.rows.rows[number].visual)

    def breaks_even(self, rates: Rates) -> float | None:
        if not self.reducers:
            return None
        shrunk = isinstance(self.reducers[0], FewerPixels)
        return breaks_even(rates, self.workload, 0 if shrunk else self.reducers[0].layer, shrunk)
