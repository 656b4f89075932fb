"""From a recipe to a plan: tokens counted, a few calls timed, the rest computed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..config import Elastic, Progressive, Recipe
from ..data.encoder import Encoder
from ..data.repeated_pixels import count_repeated_units
from ..data.sampler import steps_for
from ..models.loading import choose_device
from ..models.processors import load_processor
from ..models.structure import find_parts, unwrap_model
from ..models.towers import find_tower
from ..profiling.device import device_facts
from ..profiling.flops import QuadraticCost, flop_rates, patches_in
from ..reduction import FewerPixels, Reducer
from ..reduction.budget import Keep
from ..reduction.schedule import budget_at_step, dropped_range, teacher_keep, tower_keep_at_step
from ..reduction.teacher_stage import teacher_stage
from ..training.trainable import count_parameters
from .costs import Rates, activation_memory, break_even_ratio, static_memory
from .pairs import NOTES as PAIR_NOTES
from .probe import measure_rates
from .report import BudgetCost, Plan
from .setup import TrainingSetup
from .workload import MicroBatches, PlannedRows, StepWorkload, micro_batches, read_rows

ROWS = 2000
SECONDS = 5.0
_MOMENTS = 5  # of a progressive run
_REPEATED_IMAGES = 60  # in which repeated pixels are counted
_DRAWS = 2000  # steps of an elastic run whose budgets are counted


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
    """timing: False computes bounds from FLOPs only. ranks: by default those of this launcher. rows: how many are
    looked at, 0: all. seconds: for each timed call, in all its repeats."""
    device = choose_device(device)
    inputs = PlanInputs.of(recipe, ranks, rows, device)
    timed = inputs.measure(seconds) if timing else None
    costs = CostModel(inputs, timed)
    full, budgets = costs.of(inputs.full), tuple(costs.of(load) for load in inputs.budgets)
    return Plan(
        name=name,
        full=full,
        budgets=budgets,
        recipe=_mean(budgets) if budgets else full,
        breaks_even=inputs.break_even(timed) if timed else None,
        data=_data_facts(inputs),
        parameters={part: {"all": total, "trained": t} for part, (t, total) in count_parameters(inputs.model).items()},
        run=_run_facts(inputs),
        device=device_facts(device, inputs.setup.dtype),
        timings={call: vars(timing) for call, timing in (timed.timings if timed else {}).items()},
        notes=_notes(inputs, timed),
    )


@dataclass(frozen=True)
class ScheduledBudget:
    """The stages of the reduction at one moment of training; share: of the steps that run with them."""

    label: str
    reducers: tuple[Reducer, ...]
    share: float


def scheduled_budgets(recipe: Recipe, steps: int) -> list[ScheduledBudget]:
    """What a run of so many steps draws; empty without a reduction."""
    reduction, seed = recipe.reduction, recipe.train.seed
    stages, schedule = tuple(reduction.reducers()), reduction.schedule
    if not stages:
        return []
    if recipe.trains_at_full_tokens:
        return [ScheduledBudget("full tokens", tuple(replace(stage, keep=1.0) for stage in stages), 1.0)]
    if isinstance(schedule, Elastic):
        sample = range(0, steps, -(-steps // _DRAWS))
        drawn = Counter(budget_at_step(schedule, stages[0].keep, step, steps, seed) for step in sample)
        return [_one_stage(stages[0], keep, drawn[keep] / len(sample)) for keep in schedule.choices]
    if isinstance(schedule, Progressive):
        return [_one_stage(stages[0], keep, share) for keep, share in _moments(schedule, steps)]
    return [ScheduledBudget(" + ".join(f"keep {_keep_text(stage.keep)}" for stage in stages), stages, 1.0)]


def _one_stage(stage: Reducer, keep: Keep, share: float) -> ScheduledBudget:
    return ScheduledBudget(f"keep {_keep_text(keep)}", (replace(stage, keep=keep),), share)


def _keep_text(keep: Keep) -> str:
    return f"{keep:g}" if isinstance(keep, float) else f"{keep} tokens"


def _moments(schedule: Progressive, steps: int) -> Iterator[tuple[float, float]]:
    """(kept, share of steps): the middle of the range at some moments, and the most that is ever kept, which decides
    memory."""
    ranges = [dropped_range(schedule, round((m + 0.5) / _MOMENTS * (steps - 1)), steps) for m in range(_MOMENTS)]
    for low, high in ranges:
        yield round(1 - (low + high) / 2, 4), 1 / _MOMENTS
    yield 1.0 - min(schedule.start_low, schedule.end_low), 0.0


@dataclass(frozen=True)
class BudgetWorkload:
    """What a budget computes, and its teacher if there is one."""

    budget: ScheduledBudget
    work: StepWorkload
    teacher: StepWorkload | None


@dataclass(frozen=True)
class PlanInputs:
    """A recipe on one kind of machine: its model without weights, its rows, and what every budget has to compute."""

    setup: TrainingSetup
    model: Any
    rows: PlannedRows
    batches: MicroBatches
    device: torch.device

    @classmethod
    def of(cls, recipe: Recipe, ranks: int | None, rows: int, device: torch.device) -> PlanInputs:
        setup = TrainingSetup.of(recipe, ranks)
        model = setup.meta_model()
        processor = load_processor(
            recipe.model.path,
            trust_remote_code=recipe.model.trust_remote_code,
            template=recipe.data.template_text(),
        )
        cut = None if setup.has_reference else recipe.data.max_length  # TRL cuts answers by itself
        found = read_rows(recipe, Encoder(processor, cut, recipe.data.on_too_long), rows)
        depth = unwrap_model(model).config.get_text_config().num_hidden_layers
        numbers = micro_batches(found, recipe, setup.ranks)
        return cls(setup, model, found, MicroBatches(found, numbers, depth, recipe.data.pad_to_multiple_of), device)

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @property
    def config(self) -> Any:
        return unwrap_model(self.model).config

    @cached_property
    def reducers(self) -> list[Reducer]:
        """The recipe's stages, without its schedule."""
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
    def full(self) -> BudgetWorkload:
        """No reduction and no teacher, but the reference of DPO."""
        work = self.batches.workload()
        return BudgetWorkload(ScheduledBudget("full", (), 0.0), work, self._reference(work))

    @cached_property
    def budgets(self) -> list[BudgetWorkload]:
        """One for each budget that the schedule draws; empty without a reduction."""
        found, share = scheduled_budgets(self.recipe, self.steps), self.tower_share
        works = [replace(self.batches.workload(each.reducers), tower_share=share) for each in found]
        pairs = zip(found, works, strict=True)
        return [BudgetWorkload(each, work, self._teacher(each) or self._reference(work)) for each, work in pairs]

    def _reference(self, work: StepWorkload) -> StepWorkload | None:
        """It keeps the tokens that the policy chose."""
        return replace(work, reduced=False, tower_again=True) if self.setup.has_reference else None

    @cached_property
    def tower_share(self) -> float:
        """Of the work of the vision tower's blocks that a stage in it leaves: a mean over the steps, or over images."""
        stage = self.recipe.reduction.tower_stage()
        if stage is None:
            return 1.0
        if stage.keep is None:
            assert stage.tolerance is not None
            processor, images = self.rows.encoder.processor, _REPEATED_IMAGES
            found = count_repeated_units(self.rows.sources(), processor, stage.tolerance, images, progress=False)
            return 1.0 - found.dropped_share
        schedule, seed = self.recipe.reduction.schedule, self.recipe.train.seed
        sample = range(0, self.steps, -(-self.steps // _DRAWS))
        keeps = [tower_keep_at_step(schedule, stage.keep, step, self.steps, seed) for step in sample]
        depth = len(find_tower(find_parts(self.model)).blocks)
        return (stage.layer + (depth - stage.layer) * float(np.mean(keeps))) / depth

    def _teacher(self, budget: ScheduledBudget) -> StepWorkload | None:
        """The workload of the teacher in the middle of the run."""
        distill, most = self.recipe.distill, int(self.full.work.visual.max())
        if not self.recipe.runs_teacher:
            return None
        if distill.enabled and distill.teacher == "reduction" and budget.reducers:
            return self._own_teacher(budget)
        keeps: list[Keep] = [1.0] * len(budget.reducers)  # of the attention that scorers learn from
        if distill.enabled:
            keeps = [teacher_keep(distill, r.keep, most, self.steps // 2, self.steps) for r in budget.reducers]
        work = self.batches.workload([replace(r, keep=keep) for r, keep in zip(budget.reducers, keeps, strict=True)])
        return replace(work, stages=work.stages[-len(keeps) :])  # the layers before the reduction run once for both

    def _own_teacher(self, budget: ScheduledBudget) -> StepWorkload:
        """Of a teacher with a stage of its own: at full length from the student's first layer to its own."""
        stage = teacher_stage(self.recipe.distill, budget.reducers[-1].keep)
        work, shared = self.batches.workload([stage]), budget.reducers[0].layer
        if not stage.layer:
            return work
        (before, lengths), *after = work.stages
        return replace(work, stages=tuple(each for each in ((before - shared, lengths), *after) if each[0]))

    def measure(self, seconds: float) -> Rates:
        """In seconds, timed on this device. seconds: for each call, in all its repeats."""
        trained = sum(w.numel() for w in self.model.parameters() if w.requires_grad)
        works = [load.work for load in (self.full, *self.budgets)]
        return measure_rates(self.config, self.setup, self.batches, works, self.device, seconds, trained)

    def flops(self) -> Rates:
        build = functools.partial(self.setup.build_one_layer, self.config, "meta", "eager")
        checkpointing = self.recipe.train.gradient_checkpointing
        found = flop_rates(self.model, self.setup.modes, checkpointing, self._patches_per_token(), build)
        head = QuadraticCost(token=found.head)
        return Rates(found.layer, found.forward, head, found.tower, projector=found.projector)

    def _patches_per_token(self) -> float:
        """Patches per visual token of the first row with an image or a video."""
        number = next((n for n, row in enumerate(self.rows.rows) if sum(row.visual)), None)
        if number is None:
            return 0.0
        batch = self.rows.encode([number], self.recipe, self.setup.dtype, torch.device("cpu"))
        pixels = [batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch]
        return sum(patches_in(each, self.config) for each in pixels) / sum(self.rows.rows[number].visual)

    def break_even(self, rates: Rates) -> float | None:
        if not self.reducers:
            return None
        resized = isinstance(self.reducers[0], FewerPixels)
        return break_even_ratio(rates, self.batches, 0 if resized else self.reducers[0].layer, resized)


class CostModel:
    """The cost of any budget. timed: None if only FLOPs are known."""

    def __init__(self, inputs: PlanInputs, timed: Rates | None) -> None:
        self.inputs, self.timed, self.flops = inputs, timed, inputs.flops()
        self.fake_layer = inputs.setup.fake_layer(inputs.config, inputs.device.type)
        self.static_memory = static_memory(inputs.model, inputs.setup)

    def of(self, load: BudgetWorkload) -> BudgetCost:
        work, setup = load.work, self.inputs.setup
        samples, vocabulary = work.rows.sum(), self.inputs.config.get_text_config().vocab_size
        tower_saved = self.timed.tower_saved if self.timed else 0.0
        return BudgetCost(
            label=load.budget.label,
            share=load.budget.share,
            visual_kept=float(work.kept.sum() / samples),
            tokens=float((work.text + work.kept).sum() / samples),
            padded=_positions(work, 0),
            padded_reduced=_positions(work, -1),
            flops=self._step(self.flops, load, ranks=1),
            seconds=self._step(self.timed, load, setup.ranks) if self.timed else None,
            memory=self.static_memory | activation_memory(work, self.fake_layer, setup, vocabulary, tower_saved),
        )

    def _step(self, rates: Rates, load: BudgetWorkload, ranks: int) -> dict[str, float]:
        return rates.step(load.work, self.inputs.recipe.train.gradient_accumulation_steps, ranks, load.teacher)


def _positions(work: StepWorkload, stage: int) -> float:
    return float((work.rows * work.stages[stage][1]).sum() / work.rows.sum())


def _mean(costs: Sequence[BudgetCost]) -> BudgetCost:
    """Means weighted by share, and the largest memory."""

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=[cost.share for cost in costs]))

    def each(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: mean([part[name] for part in parts]) for name in parts[0]}

    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return BudgetCost(
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


def _data_facts(inputs: PlanInputs) -> dict[str, Any]:
    rows, totals = inputs.rows.rows, inputs.rows.totals
    work = inputs.full.work
    samples = float(work.rows.sum())
    return {
        "rows": sum(totals) if totals else None,
        "rows looked at": len(rows) // inputs.rows.answers,
        "rows dropped": sum(row.dropped for row in rows) // inputs.rows.answers,
        "visual_tokens": float(work.visual.sum() / samples),
        "tokens": float((work.text + work.visual).sum() / samples),
        "targets": float(work.targets.sum() / samples),
        "longest": max(row.text + sum(row.visual) for row in rows),
    }


def _run_facts(inputs: PlanInputs) -> dict[str, Any]:
    train = inputs.recipe.train
    return {
        "steps": inputs.steps,
        "ranks": inputs.setup.ranks,
        "backend": train.backend,
        "deepspeed": inputs.setup.deepspeed,
        "zero_stage": train.zero_stage if inputs.setup.deepspeed else None,
        "samples_per_step_and_rank": float(inputs.full.work.rows.mean()) * train.gradient_accumulation_steps,
        "checkpointing": train.gradient_checkpointing,
        "distill": inputs.recipe.runs_teacher,
        "layer": inputs.reducers[0].layer if inputs.reducers else None,
        "method": inputs.reducers[0].name if inputs.reducers else None,
    }


def _notes(inputs: PlanInputs, timed: Rates | None) -> tuple[str, ...]:
    recipe, notes = inputs.recipe, list[str]()
    if inputs.setup.has_reference:
        notes += PAIR_NOTES
    if recipe.train.padding_free:
        notes.append("batches are counted with padding, which train.padding_free leaves out: an upper bound")
    if recipe.reduction.tower is not None:
        notes.append(
            f"reduction.tower leaves {inputs.tower_share:.1%} of the work of the vision tower's blocks; its cost "
            "is scaled by that share: attention shrinks more, so this is an upper bound"
        )
    if timed is None:
        return (*notes, "activations of the vision tower and the projector are not counted without timing")
    notes += timed.notes
    if recipe.train.gradient_checkpointing and recipe.parts.vision.mode != "frozen":
        notes.append("activations of the vision tower are counted as without checkpointing: an upper bound")
    if recipe.trains_at_full_tokens:
        notes.append("scorers learn from forwards at full tokens, without a backward in the model")
    if recipe.runs_teacher:
        notes.append("the ratio at which it pays does not include the teacher; full tokens are trained without one")
    return tuple(notes)
