"""What the recipe says, in the words of Hugging Face `TrainingArguments`."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..recipe import Recipe
from .ranks import Ranks
from .zero import deepspeed_config


def training_arguments(recipe: Recipe, ranks: Ranks, steps: int) -> TrainingArguments:
    """Make it after the ranks have met and before the model is loaded: under ZeRO-3 it decides how weights load."""
    train, deepspeed = recipe.train, ranks.uses_deepspeed(recipe.train)
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
        report_to="none",  # trackers are told by dart_train.train.log
        run_name=recipe.log.name,
        disable_tqdm=True,
        log_level="error",
        use_liger_kernel=train.liger,
        # Logits are few here, only the supervised ones, and are wanted: the fused losses hide them.
        liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False} if train.liger else None,
        **_saving(recipe),
        **_checkpointing(train.gradient_checkpointing),
    )


def forget_last_run() -> None:
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
