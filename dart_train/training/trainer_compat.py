"""Everything private of transformers, accelerate and DeepSpeed that training overrides or patches.

Read in transformers 5.23.0 and 5.24.0, accelerate 1.15.0 and DeepSpeed 0.19.8:

- transformers `Trainer`: `_prepare_for_training`, `_prepare_inputs`, `_get_grad_norm`, `_get_output_dir`,
  `_save_checkpoint`, `_save`, `_load_from_checkpoint`, `_move_model_to_device`, `_save_optimizer_and_scheduler`,
  `_load_optimizer_and_scheduler`.
- accelerate `Accelerator.prepare_model` and the attribute `_is_accelerate_prepared`: such a model is not wrapped.
- accelerate `AcceleratedOptimizer._is_overflow`, and the attribute `overflow` that it reads from the wrapped optimizer
  under DeepSpeed: whether the last step was skipped. The Trainer then does not advance the schedule.
- DeepSpeed `DeepSpeedEngine`: `step`, `clip_fp32_gradients` and `_global_grad_norm` (stage 0 in float32);
  `save_checkpoint`, `checkpoint_engine.save` and `_copy_recovery_script` (errors of writing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from ..checkpoints.scorer_file import split_state_dict, write_scorers
from ..common.distributed import is_sharded
from ..common.hub import offline
from ..config import Recipe
from ..models.structure import unwrap_model
from .complete_state import STATE_FILE, Layout, optimizer_layout
from .fully_sharded import (
    full_state,
    full_weights,
    is_fully_sharded,
    restore_optimizer,
    restore_weights,
)
from .resharding_compat import is_universal, restore_groups
from .trainable import parameter_groups


class SavesCheckpoints(Protocol):
    """What `CompatTrainer` needs of the checkpoint writer."""

    draft: Path | None

    def save(self, trainer: Any, write: Callable[[], None]) -> None: ...
    def run_and_collect(self, action: Callable[[], Any]) -> None: ...
    def restore(self, model: Any, folder: Path) -> bool: ...


class CompatTrainer(Trainer):
    """A Trainer whose saving goes through `checkpoint_writer`, and whose subclass hears of each optimizer step."""

    recipe: Recipe
    checkpoint_writer: SavesCheckpoints
    optimizer: Any

    def heartbeat(self) -> None:
        """This rank has done something."""

    def on_optimizer_step(self, taken: bool) -> None:
        """taken: False where the gradient was NaN or Inf, and the parameters were not changed."""

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = self._parameter_groups(model)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer_class(groups, **options)
            declare_overflow(self.optimizer)
        return self.optimizer

    def _parameter_groups(self, model: Any) -> list[dict[str, Any]]:
        return parameter_groups(model, self.recipe, set(self.get_decay_parameter_names(model)))

    def layout(self) -> Layout:
        """Of the optimizer, before or after it is made."""
        return optimizer_layout(self.model, self._parameter_groups(self.model))

    def prepare_inputs(self, host: Mapping[str, Any]) -> Any:
        """A collated batch on the device, in the dtype that DeepSpeed computes in."""
        return self._prepare_inputs(dict(host))

    def _prepare_for_training(self, *args: Any) -> Any:
        model, loader = super()._prepare_for_training(*args)
        if self.is_deepspeed_enabled:
            skip_nonfinite_steps_at_stage_zero(model)
            collect_deepspeed_write_errors(model, self.checkpoint_writer)
            folder = Path(args[-1]) if isinstance(args[-1], str) else None
            if folder is not None and is_universal(folder):
                restore_groups(model.optimizer, folder)
        return model, loader

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Called right before `optimizer.step()`. DeepSpeed has taken, or skipped, its own step by now."""
        norm = super()._get_grad_norm(model, grad_norm)
        if is_sharded(norm):
            norm = norm.full_tensor()  # of the gradient of all ranks
        if self.is_deepspeed_enabled:
            self.on_optimizer_step(bool(self.model_wrapped.was_step_applied()))
            return norm
        taken = math.isfinite(norm)
        if not taken:
            model.zero_grad()  # the optimizer skips a parameter without a gradient
        self.optimizer._is_overflow = not taken  # the schedule waits, as under DeepSpeed
        self.on_optimizer_step(taken)
        return norm

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoint_writer.draft or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.heartbeat()
        self.checkpoint_writer.save(self, lambda: super(CompatTrainer, self)._save_checkpoint(model, trial))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        state_dict, scorers = split_state_dict(self.model.state_dict() if state_dict is None else state_dict)
        super_save = super()._save

        def write(folder: str | None, state: dict[str, Any]) -> None:
            with offline():  # peft would ask the hub for the configuration of the base model
                super_save(folder, state)
            if scorers:
                write_scorers(Path(folder or self.args.output_dir), scorers, unwrap_model(self.model))

        if self.checkpoint_writer.draft is None:
            write(output_dir, state_dict)
        else:
            self.checkpoint_writer.run_and_collect(lambda: write(output_dir, state_dict))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Full weights are read by the class that wrote them: their names in the file are not those in the model. A
        complete state has those that train, in float32."""
        folder = Path(resume_from_checkpoint)
        if not is_fully_sharded(self.model):
            restored = self.checkpoint_writer.restore(self.model if model is None else model, folder)
            if not restored:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (folder / STATE_FILE).is_file():
            restore_weights(self.model, folder)

    # FSDP2 ----------------------------------------------------------------------------------------------------

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not is_fully_sharded(model):  # else its shards are there already
            super()._move_model_to_device(model, device)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Complete weights, in the dtype that was computed in."""
        if not is_fully_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        dtype = torch.bfloat16 if self.args.bf16 else None
        weights = full_weights(self.model, trained_only=hasattr(self.model, "peft_config"), dtype=dtype)
        if self.args.should_save:
            self._save(output_dir, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_fully_sharded(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = full_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            folder, schedule = Path(output_dir), self.lr_scheduler.state_dict()
            self.checkpoint_writer.run_and_collect(lambda: torch.save(state, folder / STATE_FILE))
            self.checkpoint_writer.run_and_collect(lambda: torch.save(schedule, folder / SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (Path(checkpoint) / STATE_FILE).is_file():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        restore_optimizer(self.optimizer.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def declare_overflow(optimizer: Any) -> None:
    """accelerate asks a DeepSpeed optimizer for `overflow` if it has the attribute when it is wrapped."""
    optimizer.overflow = False


def skip_nonfinite_steps_at_stage_zero(engine: Any) -> None:
    """At stage 0 in float32 the engine clips, discards the norm, and takes a step with NaN like any other; in every
    other case it keeps the norm and skips such a step. This makes stage 0 behave the same."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return
    step = engine.step

    def clip_and_step(*args: Any, **kwargs: Any) -> None:
        parameters = [each for each in engine.module.parameters() if each.grad is not None]
        norm = float(clip_grad_norm_(parameters, engine.gradient_clipping() or math.inf))
        engine._global_grad_norm, engine.optimizer.overflow = norm, not math.isfinite(norm)
        if engine.optimizer.overflow:
            engine.zero_grad()  # the optimizer skips a parameter without a gradient
        step(*args, **kwargs)

    engine.step, engine.clip_fp32_gradients = clip_and_step, lambda: None


def collect_deepspeed_write_errors(engine: Any, writer: SavesCheckpoints) -> None:
    """What each rank writes of a checkpoint goes through `writer.run_and_collect`: a rank that left between the
    collective steps of `save_checkpoint` would keep the others waiting."""
    disk, save, copy_script = engine.checkpoint_engine, engine.save_checkpoint, engine._copy_recovery_script
    write = disk.save

    @wraps(save)
    def save_checkpoint(folder: str, **options: Any) -> None:
        tag = f"global_step{engine.global_steps}"
        save(folder, **{**options, "tag": tag, "save_latest": False})
        if engine.global_rank == 0:
            writer.run_and_collect(lambda: (Path(folder) / "latest").write_text(tag, encoding="utf-8"))

    disk.save = lambda state_dict, path: writer.run_and_collect(lambda: write(state_dict, path))
    engine._copy_recovery_script = lambda folder: writer.run_and_collect(lambda: copy_script(folder))
    engine.save_checkpoint = save_checkpoint
