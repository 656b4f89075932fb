"""Hugging Face's Trainer with the reduction on: its loop, accumulation and schedule; our loss, data and saving."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..common.distributed import RankInfo
from ..config import Recipe
from ..hooks import Attached
from ..models.structure import find_parts
from .callbacks import AgreeAtStepEnd
from .checkpointing import CheckpointWriter
from .data_feed import TrainFeed, Validation
from .deepspeed_config import deepspeed_config, guard_stage_zero
from .liveness import StopRequest
from .nonfinite import NonFiniteGuard
from .objective import Budgets, Told, forward_with_teacher, number, tell
from .throughput import ThroughputMeter
from .trainable import learning_rates, parameter_groups

# What the recipe says, in the words of Hugging Face `TrainingArguments`.


def training_arguments(recipe: Recipe, ranks: RankInfo, steps: int) -> TrainingArguments:
    """Make it after the ranks have met and before the model is loaded: under ZeRO-3 it decides how weights load."""
    train = recipe.train
    deepspeed = ranks.uses_deepspeed(train.zero_stage, train.requires_deepspeed)
    return TrainingArguments(
        output_dir=train.output_dir,
        max_steps=steps,
        per_device_train_batch_size=train.per_device_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler,
        warmup_steps=train.warmup_ratio if train.warmup_ratio < 1 else steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        data_seed=recipe.data.seed,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # what is not a number is seen, not averaged away
        use_cpu=not torch.cuda.is_available(),
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        average_tokens_across_devices=True,
        ddp_timeout=train.timeout_seconds,
        # The projector may read an earlier layer of the tower than its last, which then gets no gradient.
        ddp_find_unused_parameters=recipe.parts.vision.mode != "frozen",
        deepspeed=deepspeed_config(train) if deepspeed else None,
        remove_unused_columns=False,
        ignore_data_skip=True,  # the loader itself starts where the run stands
        report_to="none",  # trackers are told by dart_train.training.callbacks
        run_name=recipe.log.name,
        disable_tqdm=True,
        log_level="error",
        use_liger_kernel=train.liger,
        # Logits are few here, only the supervised ones, and are wanted: the fused losses hide them.
        liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False} if train.liger else None,
        **_saving(recipe),
        **_checkpointing(train.gradient_checkpointing),
    )


def reset_deepspeed_state() -> None:
    """What an earlier run of this process left behind: models would still be made for its ZeRO stage."""
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    unset_hf_deepspeed_config()


def _saving(recipe: Recipe) -> dict[str, Any]:
    train, judged = recipe.train, bool(recipe.data.validation)
    return {
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "save_total_limit": None,  # swept by ours: at its end the Trainer would remove the newest that is not the best
        "eval_strategy": "steps" if judged else "no",
        "eval_steps": (train.eval_steps or train.save_steps) if judged else None,
        "metric_for_best_model": train.best_metric,
        "greater_is_better": None if train.best_metric is None else "loss" not in train.best_metric,
    }


def _checkpointing(on: bool) -> dict[str, Any]:
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": {"use_reentrant": False}} if on else {}


Batch = Mapping[str, Any]


class DartTrainer(Trainer):
    """One run of a recipe. `attached` is None where nothing is reduced."""

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
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.recipe, self.feed, self.attached, self.validation = recipe, feed, attached, validation
        self.start_step, self.meter = start_step, ThroughputMeter(attached)
        self.budgets = Budgets(recipe, attached, feed.steps, find_parts(model).visual_ids)
        self.saver = CheckpointWriter(recipe, Path(recipe.train.output_dir))
        self.guard = NonFiniteGuard(recipe, feed, self.saver.run, start_step)
        self.stopping = StopRequest(launched=False)
        self.beat: Callable[[], None] = lambda: None  # told whenever something was done
        self.host: Batch = {}
        self.rates: dict[str, float] = {}
        judged = None if validation is None else validation.batches.dataset
        callbacks = [ApplyStepBudget(self), AgreeAtStepEnd(self), *(callbacks or [])]
        super().__init__(model, args, processing_class=processor, eval_dataset=judged, callbacks=callbacks)
        self.remove_callback(PrinterCallback)  # ours tells more
        self.model_accepts_loss_kwargs = True  # so that the Trainer counts the targets of the global batch

    # data -----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        return self.feed.loader(self.start_step)

    def set_initial_training_values(self, args: TrainingArguments, dataloader: Any) -> Any:
        """One line of steps: epochs are counted by the feed, whose batches run over their ends."""
        steps, rows = self.feed.steps, self.feed.rows_per_step
        return 1, steps, steps * rows, steps * rows, rows, steps * args.gradient_accumulation_steps, steps

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        begin = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.meter.waited(time.perf_counter() - begin)
        items = torch.tensor(sum(number(batch) for batch in batches), device=device)
        total = self.accelerator.reduce(items, "sum")
        return batches, total.clamp_min(1)  # a step that teaches nothing divides by one, not by zero

    # loss -----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        self.host = inputs
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.meter.forward(inputs, self.attached)
        self.beat()
        return self.guard.heard(loss)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The sum over this rank's targets, divided by all targets of the global batch. Ranks are averaged
        afterwards, hence the factor."""
        told, teacher = self._tell(model, inputs)
        loss, distill = told.loss(), self.recipe.distill
        if teacher is not None:
            divergence = told.divergence(teacher, distill.temperature)
            self.meter.taught(loss, divergence)
            loss = distill.alpha * divergence + (1 - distill.alpha) * loss
        loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, told) if return_outputs else loss

    def _tell(self, model: Any, inputs: Batch) -> tuple[Told, Tensor | None]:
        """And, with distillation, the teacher's logits out of the same forward."""
        if not self.recipe.distill.enabled or self.attached is None:
            return tell(model, self.attached, inputs, self.host), None
        gentler = self.budgets.teaching(self.state.global_step, self.host)
        return forward_with_teacher(model, self.attached, inputs, self.host, gentler)

    # optimizer ------------------------------------------------------------------------------------------------

    def _prepare_for_training(self, *args: Any) -> Any:
        model, loader = super()._prepare_for_training(*args)
        if self.is_deepspeed_enabled:
            guard_stage_zero(model)
            self.saver.soften(model)
        return model, loader

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Asked right before the optimizer's step. DeepSpeed has taken its own by now, or has not."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.is_deepspeed_enabled:
            self.guard.stepped = bool(self.model_wrapped.was_step_applied())
            return norm
        self.guard.stepped = math.isfinite(norm)
        if not self.guard.stepped:
            model.zero_grad()  # the optimizer passes over a parameter without a gradient
        self.optimizer._is_overflow = not self.guard.stepped  # so that the schedule waits too, as under DeepSpeed
        return norm

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = parameter_groups(model, self.recipe, set(self.get_decay_parameter_names(model)))
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(groups, **options)
            self.optimizer.overflow = False  # whether a step was passed over: asked for by accelerate, if it is there
        return self.optimizer

    # telling --------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.state.epoch = self.feed.epoch(self.state.global_step) or self.state.epoch
        if "loss" in logs:
            logs.update({f"lr_{part}": rate for part, rate in self.rates.items()})
            logs.update(self.meter.read(self.accelerator, self.feed.reader.counts))
            logs["bad_steps"] = self.guard.count
            if not math.isfinite(logs.get("grad_norm", 0.0)):
                del logs["grad_norm"]  # of a step that was not taken; no number in JSON either
            logs.update(self.budgets.told())
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.validation is None:
            return {}
        metrics = self.validation.judge(self.model_wrapped, self)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # checkpoints ----------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saver.writing or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.beat()
        self.saver.save(self, lambda: super(DartTrainer, self)._save_checkpoint(model, trial))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.saver.writing is None:
            super()._save(output_dir, state_dict)
        else:
            self.saver.later(lambda: super(DartTrainer, self)._save(output_dir, state_dict))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Full weights are read by the class that wrote them: their names in the file are not those in the model."""
        if self.saver.restore(self.model if model is None else model, Path(resume_from_checkpoint)):
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)


class ApplyStepBudget(TrainerCallback):
    """Before the forwards of an optimizer step: its budget, the same on every rank."""

    def __init__(self, trainer: DartTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.budgets.begin(state.global_step)
        self.trainer.rates = learning_rates(self.trainer.optimizer)
        self.trainer.meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.meter.end()
