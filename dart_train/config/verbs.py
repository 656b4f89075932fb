"""The sections that say how a verb goes: `train` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .ranges import Count, Fraction, Keep, NotNegative, Positive, Text, Whole
from .sections import Source


@dataclass(frozen=True)
class Train:
    output_dir: str = ""  # empty: runs/<name of the recipe's file>
    epochs: Positive | None = 1.0  # passes over the data
    max_steps: Count | None = None  # optimizer steps; goes before epochs
    per_device_batch_size: Count = 1  # samples of a rank in one forward
    per_device_eval_batch_size: Count = 4  # the same in validation
    gradient_accumulation_steps: Count = 1  # forwards per optimizer step
    learning_rate: Positive = 1e-4  # of parts that have none of their own
    lr_scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"] = (
        "cosine"  # how the learning rate goes down
    )
    warmup_ratio: Fraction = 0.03  # share of the steps in which the learning rate rises
    weight_decay: NotNegative = 0.0  # of matrices; never of norms and biases
    max_grad_norm: NotNegative = 1.0  # 0: gradients are not clipped
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"  # of the computation
    gradient_checkpointing: bool = True  # compute again instead of keeping activations
    zero_stage: Literal[0, 1, 2, 3] = 2  # shared: 1 optimizer state, 2 gradients, 3 weights
    offload_optimizer: bool = False  # to the memory of the host
    offload_parameters: bool = False  # with zero_stage 3 only
    deepspeed: str | None = None  # a DeepSpeed json of your own, in place of the three lines above
    save_steps: Count = 500  # a checkpoint every so many steps, and one at the end
    save_total_limit: Count | None = 3  # the best one is kept besides
    eval_steps: Count | None = None  # null: whenever a checkpoint is saved
    eval_budgets: tuple[Keep, ...] = (1.0, 0.333, 0.111)  # validation is repeated at each
    best_metric: str | None = None  # of the validation, such as loss or accuracy; null: the newest is best
    resume: Text = "auto"  # auto: the newest whole checkpoint; never; or the folder of one
    logging_steps: Count = 10  # a line of metrics every so many steps
    overlay_steps: Count | None = None  # draw what was kept of a few validation pictures; null: never
    seed: Whole = 0  # of dropout, new adapters and drawn budgets
    on_nan: Literal["skip", "stop"] = "stop"  # a step whose loss is not a number
    on_save_error: Literal["stop", "continue"] = "stop"  # such as a full disk
    timeout_seconds: Count = 1800  # a rank that is silent for longer ends the run
    liger: bool = False  # fused kernels of the liger-kernel package


@dataclass(frozen=True)
class QuestionSet(Source):
    metrics: tuple[Text, ...] = ()  # none: compare.metrics
    kind_metrics: dict[str, tuple[Text, ...]] = field(default_factory=dict)  # kind of question: others for it


@dataclass(frozen=True)
class Compare:
    checkpoints: dict[str, str] = field(default_factory=dict)  # name: folder; none: model.path as base
    methods: tuple[str | dict[str, Any], ...] = ("dart",)  # names, or mappings: see methods.py
    budgets: tuple[Keep, ...] = (1.0, 0.333, 0.222, 0.111)  # full tokens are always measured
    sets: tuple[QuestionSet, ...] = ()  # what is asked
    metrics: tuple[Text, ...] = ("exact_match",)  # of sets that name none
    batch_size: Count = 8  # questions answered together
    max_new_tokens: Count = 32  # of an answer
    timing: bool = True  # measure latency and memory besides answers
    timing_batch_size: Count = 1  # questions answered together while the clock runs
    timing_repeats: Count = 7  # of each row, in turn with all others
    seed: Whole = 0  # of the resampling that intervals rest on
    output_dir: str = ""  # empty: compare/ in the run folder
