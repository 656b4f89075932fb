"""From a recipe to a plan: tokens counted, a few calls timed, the rest computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..config import Recipe
from ..profiling.device import device_facts
from ..training.trainable import counts
from .case import Case, Load
from .memory import passing, standing
from .rates import Rates
from .result import Cost, Plan
from .work import Work

ROWS = 2000
SECONDS = 5.0


def predict(
    recipe: Recipe,
    *,
    timing: bool = True,
    device: str | torch.device | None = None,
    ranks: int | None = None,
    rows: int = ROWS,
    seconds: float = SECONDS,
    name: str = "recipe",
) -> Plan:
    """timing: False computes bounds from FLOPs only. ranks: those of this launcher unless given. rows: how many are
    looked at, 0: all. seconds: for each timed call, in all its repeats."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    case = Case.of(recipe, ranks, rows, device)
    timed = case.seconds(seconds) if timing else None
    costs = Costs(case, timed)
    full, budgets = costs.of(case.full), tuple(costs.of(load) for load in case.loads)
    return Plan(
        name=name,
        full=full,
        budgets=budgets,
        recipe=_mean(budgets) if budgets else full,
        breaks_even=case.breaks_even(timed) if timed else None,
        data=_data(case),
        parameters={part: {"all": whole, "trained": t} for part, (t, whole) in counts(case.model).items()},
        run=_run(case),
        device=device_facts(device, case.setup.dtype),
        timings={call: vars(timing) for call, timing in (timed.timings if timed else {}).items()},
        notes=_notes(recipe, timed),
    )


class Costs:
    """The cost of any budget. timed: None where only FLOPs are known."""

    def __init__(self, case: Case, timed: Rates | None) -> None:
        self.case, self.timed, self.counted = case, timed, case.flops()
        self.ghost = case.setup.fake_layer(case.config, case.device.type)
        self.standing = standing(case.model, case.setup)

    def of(self, load: Load) -> Cost:
        work, samples = load.work, load.work.rows.sum()
        return Cost(
            label=load.budget.label,
            share=load.budget.share,
            visual_kept=float(work.kept.sum() / samples),
            tokens=float((work.text + work.kept).sum() / samples),
            padded=_places(work, 0),
            padded_reduced=_places(work, -1),
            flops=self._step(self.counted, load, ranks=1),
            seconds=self._step(self.timed, load, self.case.setup.ranks) if self.timed else None,
            memory={**self.standing, **self._passing(work)},
        )

    def _passing(self, work: Work) -> dict[str, int]:
        tower = self.timed.tower_saved if self.timed else 0.0
        return passing(work, self.ghost, self.case.setup, self.case.config.get_text_config().vocab_size, tower)

    def _step(self, rates: Rates, load: Load, ranks: int) -> dict[str, float]:
        return rates.step(load.work, self.case.recipe.train.gradient_accumulation_steps, ranks, load.teacher)


def _notes(recipe: Recipe, timed: Rates | None) -> tuple[str, ...]:
    if timed is None:
        return ("activations of the vision tower and the projector are not counted without timing",)
    notes = list(timed.notes)
    if recipe.train.gradient_checkpointing and recipe.parts.vision.mode != "frozen":
        notes.append("activations of the vision tower are counted as without checkpointing: an upper bound")
    if recipe.distill.enabled:
        notes.append("the ratio at which it pays leaves the teacher out; full tokens are trained without one")
    return tuple(notes)


def _places(work: Work, stage: int) -> float:
    return float((work.rows * work.stages[stage][1]).sum() / work.rows.sum())


def _mean(costs: Sequence[Cost]) -> Cost:
    """By share; of the memory the largest."""

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=[cost.share for cost in costs]))

    def each(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: mean([part[name] for part in parts]) for name in parts[0]}

    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return Cost(
        label="recipe",
        share=1.0,
        visual_kept=mean([cost.visual_kept for cost in costs]),
        tokens=mean([cost.tokens for cost in costs]),
        padded=mean([cost.padded for cost in costs]),
        padded_reduced=mean([cost.padded_reduced for cost in costs]),
        flops=each([cost.flops for cost in costs]),
        seconds=each(seconds) if seconds else None,
        memory=max((cost.memory for cost in costs), key=lambda memory: sum(memory.values())),
    )


def _data(case: Case) -> dict[str, Any]:
    rows, totals = case.rows.rows, case.rows.totals
    work = case.full.work
    samples = float(work.rows.sum())
    return {
        "rows": sum(totals) if totals else None,
        "rows looked at": len(rows),
        "rows dropped": sum(row.dropped for row in rows),
        "visual_tokens": float(work.visual.sum() / samples),
        "tokens": float((work.text + work.visual).sum() / samples),
        "targets": float(work.learnt.sum() / samples),
        "longest": max(row.text + sum(row.visual) for row in rows),
    }


def _run(case: Case) -> dict[str, Any]:
    train = case.recipe.train
    return {
        "steps": case.steps,
        "ranks": case.setup.ranks,
        "deepspeed": case.setup.deepspeed,
        "zero_stage": train.zero_stage if case.setup.deepspeed else None,
        "samples_per_step_and_rank": float(case.full.work.rows.mean()) * train.gradient_accumulation_steps,
        "checkpointing": train.gradient_checkpointing,
        "distill": case.recipe.distill.enabled,
        "layer": case.reducers[0].layer if case.reducers else None,
        "method": case.reducers[0].name if case.reducers else None,
    }
