"""The DeepSpeed configuration of a recipe, and how it partitions the state of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..common.distributed import RankInfo
from ..config import Train
from .fully_sharded import SHARDED, uses_fsdp2

Config = dict[str, Any]


def deepspeed_config(train: Train) -> Config:
    """`auto` is filled in by the Trainer from its arguments, so that the two cannot disagree."""
    if train.deepspeed:
        return _read_user_config(Path(train.deepspeed))
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        # Without the check, stages 1 and 2 take a step with NaN in bf16. In fp32, and at stage 3, they never do.
        "bf16": {"enabled": train.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": train.precision == "fp16"},
        "zero_optimization": _zero_optimization(train),
        "steps_per_print": 1_000_000_000,  # the progress line replaces DeepSpeed's
    }


def _zero_optimization(train: Train) -> Config:
    config: Config = {"stage": train.zero_stage}
    if train.offload_optimizer:
        config["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train.zero_stage == 3:
        config |= {
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            # Without it a checkpoint holds only partitioned weights, which from_pretrained cannot load.
            "stage3_gather_16bit_weights_on_model_save": True,
        }
        if train.offload_parameters:
            config["offload_param"] = {"device": "cpu", "pin_memory": True}
    return config


def zero_stage(config: Config) -> int:
    return int(config.get("zero_optimization", {}).get("stage", 0))


def uses_deepspeed(train: Train, ranks: RankInfo) -> bool:
    return train.backend == "deepspeed" and ranks.uses_deepspeed(train.zero_stage, train.requires_deepspeed)


def optimizer_sharding(train: Train, ranks: RankInfo) -> dict[str, int | str | None]:
    """How the optimizer's state is partitioned; stage None: every rank has all of it; fsdp2: a checkpoint has all."""
    if uses_fsdp2(train, ranks):
        return {"ranks": ranks.world, "stage": SHARDED}
    stage = zero_stage(deepspeed_config(train)) if uses_deepspeed(train, ranks) else None
    return {"ranks": ranks.world, "stage": stage}


def _read_user_config(path: Path) -> Config:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"train.deepspeed: {path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"train.deepspeed: {path} holds a {type(config).__name__}; expected a JSON object")
    zero = config.get("zero_optimization", {})
    stage, wrong = zero_stage(config), []
    if stage not in (0, 1, 2, 3):
        wrong.append(f"zero_optimization.stage is {stage}; expected 0, 1, 2 or 3")
    if "offload_param" in zero and stage != 3:
        wrong.append(f"zero_optimization.offload_param needs stage 3, given {stage}")
    if stage == 3 and zero.get("stage3_gather_16bit_weights_on_model_save") is not True:
        wrong.append(
            "zero_optimization.stage3_gather_16bit_weights_on_model_save must be true: without it no checkpoint holds "
            "weights that can be loaded"
        )
    if "optimizer" in config or "scheduler" in config:
        wrong.append(
            "optimizer and scheduler are made from the recipe, which has a learning rate for each part; leave both out"
        )
    if wrong:
        raise ValueError("\n".join(f"train.deepspeed: {path}: {each}" for each in wrong))
    if isinstance(config.get("bf16"), dict):
        config["bf16"].setdefault("check_grad_overflow", True)
    return config
