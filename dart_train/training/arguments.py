"""The recipe as the `TrainingArguments` of transformers."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from ..common.distributed import RankInfo
from ..config import Recipe
from .deepspeed_config import deepspeed_config, uses_deepspeed
from .resharding_compat import with_universal


def training_arguments(recipe: Recipe, ranks: RankInfo, steps: int, universal: bool = False) -> TrainingArguments:
    """universal: the run resumes from a converted checkpoint. Make them after the process group and before the model
    is loaded: under ZeRO-3 they decide how weights load."""
    return TrainingArguments(**argument_values(recipe, ranks, steps, universal))


def argument_values(recipe: Recipe, ranks: RankInfo, steps: int, universal: bool = False) -> dict[str, Any]:
    train = recipe.train
    return dict(
        output_dir=train.output_dir,
        max_steps=steps,
        per_device_train_batch_size=train.per_device_batch_size,
        per_device_eval_batch_size=train.per_device_eval_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        warmup_steps=_warmup(recipe, steps),
        optim=train.optimizer,
        adam_beta1=train.adam_betas[0],
        adam_beta2=train.adam_betas[1],
        neftune_noise_alpha=train.neftune_alpha,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        data_seed=recipe.data.seed,
        logging_steps=train.logging_steps,
        logging_nan_inf_filter=False,  # NaN and Inf are handled by NonFiniteGuard, not averaged away
        use_cpu=not torch.cuda.is_available(),
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        average_tokens_across_devices=True,
        ddp_timeout=train.timeout_seconds,
        # The projector may read an earlier layer of the vision tower than its last, which then gets no gradient.
        ddp_find_unused_parameters=recipe.parts.vision.mode != "frozen",
        deepspeed=_deepspeed(recipe, universal) if uses_deepspeed(train, ranks) else None,
        remove_unused_columns=False,
        ignore_data_skip=True,  # on resume, our loader starts at the right batch itself
        report_to="none",  # trackers are our own callbacks
        run_name=recipe.log.name,
        disable_tqdm=True,
        use_liger_kernel=train.liger,
        # Only logits at supervised positions are computed, and the objective needs them: fused losses return none.
        liger_kernel_config={"fused_linear_cross_entropy": False, "cross_entropy": False} if train.liger else None,
        **_saving_and_validation(recipe),
        **_gradient_checkpointing(train.gradient_checkpointing),
        **{"logging_first_step": True, "log_level": "error", **train.hf, **_schedule(recipe)},
    )


def _deepspeed(recipe: Recipe, universal: bool) -> dict[str, Any]:
    config = deepspeed_config(recipe.train)
    return with_universal(config) if universal else config


def reset_deepspeed_state() -> None:
    """Forgets an earlier run in this process: models would still be loaded for its ZeRO stage."""
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    unset_hf_deepspeed_config()


def _warmup(recipe: Recipe, steps: int) -> float:
    """A number of steps, or a share below 1 of them, as transformers takes it."""
    train = recipe.train
    if train.warmup_steps is not None:
        return train.warmup_steps
    return train.warmup_ratio if train.warmup_ratio < 1 else steps


def _schedule(recipe: Recipe) -> dict[str, Any]:
    train = recipe.train
    name: str = train.lr_scheduler
    options = dict(train.hf.get("lr_scheduler_kwargs") or {})
    if train.min_learning_rate is not None:
        name, options["min_lr_rate"] = "cosine_with_min_lr", train.min_learning_rate / train.learning_rate
    return {"lr_scheduler_type": name, "lr_scheduler_kwargs": options}


def _saving_and_validation(recipe: Recipe) -> dict[str, Any]:
    train, validated = recipe.train, bool(recipe.data.validation)
    best = train.best_metric or ("loss" if train.early_stopping_patience is not None else None)
    return {
        "save_strategy": "steps",
        "save_steps": train.save_steps,
        "save_total_limit": None,  # `checkpoints.prune` does it: the Trainer removes the newest one unless it is best
        "eval_strategy": "steps" if validated else "no",
        "eval_steps": (train.eval_steps or train.save_steps) if validated else None,
        "metric_for_best_model": best,
        "greater_is_better": None if best is None else "loss" not in best,
    }


def _gradient_checkpointing(on: bool) -> dict[str, Any]:
    """The argument has a new name in newer releases of transformers."""
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: on, f"{name}_kwargs": {"use_reentrant": False}} if on else {}
