"""Hugging Face's Trainer with the reduction: its loop, accumulation and schedule; our loss, data and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ..checkpoints import is_complete
from ..common.trackers import Tracker
from ..config import Recipe
from ..hooks import Attached
from ..models.structure import find_parts
from .callbacks import AgreeAtStepEnd, ApplyStepBudget
from .checkpointing import CheckpointWriter
from .data_feed import ROWS_READ, SKIPPED_ROWS, TrainFeed
from .liveness import StopRequest
from .nonfinite import NonFiniteGuard
from .objective import (
    Batch,
    StepBudgets,
    SupervisedLogits,
    forward_supervised,
    forward_with_teacher,
    target_weight,
)
from .predictions import COLUMNS
from .row_guard import RowGuard
from .scorer_training import loss_with_scorer, temperature
from .throughput import ThroughputMeter
from .trainer_compat import CompatTrainer
from .validation import EvalForward, Validation


class DartTrainer(CompatTrainer):
    """One run of a recipe. `attached` is None where nothing is reduced. `stop` and `on_heartbeat` are set by the
    caller that watches the run."""

    optimizer: Any
    control: Any

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        recipe: Recipe,
        feed: TrainFeed,
        attached: Attached | None,
        processor: Any,
        validation: Validation | None = None,
        start_step: int = 0,
        stop: StopRequest | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        run = Path(recipe.train.output_dir)
        self.recipe, self.feed, self.attached, self.validation = recipe, feed, attached, validation
        self.start_step, self.meter = start_step, ThroughputMeter(attached)
        self.budgets = StepBudgets(recipe, attached, feed.steps, find_parts(model).visual_ids)
        self.checkpoint_writer = CheckpointWriter(recipe, feed.ranks, run, feed.fingerprint())
        self.guard = NonFiniteGuard(recipe, feed, run, start_step)
        self.row_guard = RowGuard(recipe, feed, run, start_step, self.sum_over_ranks)
        self.on_heartbeat: Callable[[], None] = lambda: None
        self.host: Batch = {}  # the batch of the current forward, on the CPU
        self.step_budget = ApplyStepBudget(self.budgets, self.meter)
        agree = AgreeAtStepEnd(self.guard, stop or StopRequest(launched=False), self.any_rank)
        rows = None if validation is None else validation.batches.dataset
        callbacks = [self.step_budget, agree, *(callbacks or [])]
        super().__init__(model, args, processing_class=processor, eval_dataset=rows, callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # ProgressLine replaces it
        self.model_accepts_loss_kwargs = True  # makes the Trainer count the targets of the global batch

    # ranks ----------------------------------------------------------------------------------------------------

    def heartbeat(self) -> None:
        self.on_heartbeat()

    def any_rank(self, *values: bool) -> list[bool]:
        """For each value, whether it is true on any rank. Collective."""
        return [bool(value) for value in self.sum_over_ranks([int(value) for value in values])]

    def sum_over_ranks(self, values: Sequence[int]) -> list[int]:
        """Collective."""
        local = torch.tensor(values, device=self.args.device)
        return list(self.accelerator.reduce(local, "sum").tolist())

    # data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self.feed.loader(self.start_step)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """One epoch of all steps for the Trainer: the feed counts epochs, and its batches may span two of them."""
        steps, rows = self.feed.steps, self.feed.rows_per_step
        return 1, steps, steps * rows, steps * rows, rows, steps * args.gradient_accumulation_steps, steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The batches of one optimizer step, and the weight of the targets of all ranks in it."""
        begin = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.meter.add_data_wait(time.perf_counter() - begin)
        skipped = [row for batch in batches for row in batch.pop(SKIPPED_ROWS)]
        rows = sum(batch.pop(ROWS_READ) for batch in batches)
        weight = sum(target_weight(batch) for batch in batches)
        total = self.row_guard.begin_step(self.state.global_step + 1, rows, weight, skipped)
        return batches, torch.tensor(total or 1.0, device=device)  # a step without targets divides by one

    # loss -----------------------------------------------------------------------------------------------------

    def save_before_error(self) -> None:
        """Collective, between two steps: saves what was trained, unless that is saved already."""
        folder = Path(self.recipe.train.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.row_guard.trained and not is_complete(folder):
            self._save_checkpoint(self.model_wrapped, trial=None)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.host = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.meter.add_forward(inputs)
        self.heartbeat()
        return self.guard.record_loss(loss)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum over this rank's targets, divided by the weight of all targets of the global batch.
        Gradients are averaged over the ranks afterwards, hence the factor."""
        distill, teacher = self.recipe.distill, None
        if self.recipe.trains_scorer and self.attached is not None:
            found = loss_with_scorer(
                self.recipe, self.budgets, model, self.attached, inputs, self.host, self.state.global_step
            )
            self.meter.add_scorer_step(found, self.recipe.scorer.task > 0)
            if found.divergence is not None:
                self.meter.add_distill_loss(found.task_loss, found.divergence)
            loss = found.total * self.accelerator.num_processes / num_items_in_batch
            return (loss, found.output) if return_outputs else loss
        if distill.enabled and self.attached is not None:
            keep = self.budgets.teacher(self.state.global_step, self.host)
            output, teacher = forward_with_teacher(model, self.attached, inputs, self.host, keep)
        else:
            output = forward_supervised(model, self.attached, inputs, self.host)
        loss = output.loss()
        if teacher is not None:
            divergence = output.divergence(teacher, distill.temperature)
            self.meter.add_distill_loss(loss, divergence)
            loss = distill.alpha * divergence + (1 - distill.alpha) * loss
        loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, output) if return_outputs else loss

    # steps ----------------------------------------------------------------------------------------------------

    def on_optimizer_step(self, taken: bool) -> None:
        self.guard.step_was_taken = taken

    @property
    def trackers(self) -> list[Tracker]:
        """On the first rank; the others have none."""
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, Tracker)]

    # validation and metrics -----------------------------------------------------------------------------------

    @contextmanager
    def eval_mode(self) -> Iterator[EvalForward]:
        model = self.model_wrapped

        def forward(host: Batch) -> SupervisedLogits:
            self.heartbeat()
            return forward_supervised(model, self.attached, self.prepare_inputs(host), host)

        model.eval()
        try:
            with torch.no_grad():
                yield forward
        finally:
            model.train()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.validation is None:
            return {}
        metrics = self.validation.evaluate(self.budgets, self.eval_mode, self.accelerator)
        self.log(metrics)
        if self.validation.predictions is not None:
            rows = self.validation.predictions.take()
            for tracker in self.trackers:
                tracker.show_table("validation/predictions", COLUMNS, rows, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.state.epoch = self.feed.epoch(self.state.global_step) or self.state.epoch
        if "loss" in logs:
            logs.update({f"lr_{part}": rate for part, rate in self.step_budget.learning_rates.items()})
            logs.update(self.meter.read_and_reset(self.accelerator, self.feed.reader.counts))
            logs["bad_steps"] = self.guard.count
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]  # of a step that was not taken; and JSON has no NaN
            logs.update(self.budgets.metrics())
            if self.recipe.trains_scorer and self.recipe.scorer.task:
                step = max(self.state.global_step - 1, 0)  # the last that was taken
                logs["scorer_temperature"] = temperature(self.recipe, step, self.budgets.steps)
        super().log(logs, start_time)
