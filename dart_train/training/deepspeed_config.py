"""The DeepSpeed configuration that a recipe stands for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch.nn.utils import clip_grad_norm_

from ..config import Train

Config = dict[str, Any]


def deepspeed_config(train: Train) -> Config:
    """`auto` is filled in by the Trainer from its arguments, so that the two cannot disagree."""
    if train.deepspeed:
        return _own(Path(train.deepspeed))
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # The check: stages 1 and 2 would take a step of nan in bf16; in fp32, and at stage 3, they never do.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": train.precision == "fp16"},
        "zero_optimization": _zero(train),
        "steps_per_print": 1_000_000_000,  # the run prints its own line
    }


def _zero(train: Train) -> Config:
    config: Config = {"stage": train.zero_stage}
    if train.offload_optimizer:
        config["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train.zero_stage == 3:
        config |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            # Without it a checkpoint holds no weights that anybody can load.
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if train.offload_parameters:
            config["offload_param"] = {"device": "cpu", "pin_memory": True}
    return config


def guard_stage_zero(engine: Any) -> None:
    """At stage 0 in float32 the engine clips, throws the norm away, and takes a step of nan as any other; everywhere
    else it can be asked for the norm, and skips such a step. This makes it alike."""
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        return
    step = engine.step

    def guarded(*given: Any, **named: Any) -> None:
        parameters = [each for each in engine.module.parameters() if each.grad is not None]
        norm = float(clip_grad_norm_(parameters, engine.gradient_clipping() or math.inf))
        engine._global_grad_norm, engine.optimizer.overflow = norm, not math.isfinite(norm)
        if engine.optimizer.overflow:
            engine.zero_grad()  # the optimizer passes over a parameter without a gradient
        step(*given, **named)

    engine.step, engine.clip_fp32_gradients = guarded, lambda: None


def stage_of(config: Config) -> int:
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _own(path: Path) -> Config:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"train.deepspeed: {path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"train.deepspeed: {path} holds a {type(config).__name__}; expected a JSON object")
    _check(config, path)
    if isinstance(config.get("bf16"), dict):
        config["bf16"].setdefault("check_grad_overflow", True)
    return config


def _check(config: Config, path: Path) -> None:
    zero = config.get("zero_optimization", {})
    stage, wrong = stage_of(config), []
    if stage not in (0, 1, 2, 3):
        wrong.append(f"zero_optimization.stage is {stage}; expected 0, 1, 2 or 3")
    if "offload_param" in zero and stage != 3:
        wrong.append(f"zero_optimization.offload_param needs stage 3, given {stage}")
    if stage == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        wrong.append("zero_optimization.stage3_gather_16bit_weights_on_model_save must be true: without it no "
                     "checkpoint holds weights that can be loaded")  # fmt: skip
    if "optimizer" in config or "scheduler" in config:
        wrong.append("optimizer and scheduler are made from the recipe, which knows the parts' learning rates; "
                     "leave both out")  # fmt: skip
    if wrong:
        raise ValueError("\n".join(f"train.deepspeed: {path}: {each}" for each in wrong))
