"""The sections `train`, `preference` and `log`: the training run, and where its metrics go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .fields import (
    Count,
    Dropped,
    ExactInt,
    Fraction,
    Keep,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    Several,
    Text,
    Words,
)

LearningRateSchedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "constant",
    "constant_with_warmup",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
]
# Of transformers' `optim`: those that take groups of parameters, each with a learning rate of its own.
Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "grokadamw",
    "stable_adamw",
    "sgd",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
]


class Train(Section):
    """The training run."""

    method: Literal["sft", "dpo", "grpo"] = Field(
        default="sft",
        description="sft: on answers; dpo: on pairs of a chosen and a rejected answer; grpo: on rewards of rollouts",
    )
    output_dir: str = Field(default="", description="folder of the run; empty: runs/<name of the recipe's file>")
    epochs: Positive | None = Field(default=1.0, description="passes over the data")
    max_steps: Count | None = Field(default=None, description="optimizer steps; takes precedence over epochs")
    per_device_batch_size: Count = Field(default=1, description="samples of a rank in one forward")
    per_device_eval_batch_size: Count = Field(
        default=4, description="samples of a rank in one forward of the validation"
    )
    padding_free: bool = Field(
        default=False,
        description="rows of a forward are laid end to end, without padding, and attention stays within each row",
    )
    tokens_per_batch: Count | None = Field(
        default=None,
        description="tokens of a rank in one forward, in place of per_device_batch_size; needs padding_free. A row "
        "counts its tokens at the budget that is served, as a mean over the decoder's layers",
    )
    gradient_accumulation_steps: Count = Field(default=1, description="forwards for each optimizer step")
    learning_rate: Positive = Field(default=1e-4, description="of parts that have none of their own")
    lr_scheduler: LearningRateSchedule = Field(default="cosine", description="how the learning rate decays")
    warmup_ratio: Fraction = Field(default=0.03, description="share of the steps in which the learning rate rises")
    warmup_steps: NotNegativeInt | None = Field(
        default=None, description="steps in which the learning rate rises; takes precedence over warmup_ratio"
    )
    min_learning_rate: NotNegative | None = Field(
        default=None,
        description="where lr_scheduler cosine ends; a part with its own learning rate ends at the same share of it",
    )
    optimizer: Optimizer = Field(
        default="adamw_torch_fused",
        description="by transformers' name; those with 8bit, lion, ademamix or paged need the package bitsandbytes",
    )
    adam_betas: Several[Dropped] = Field(
        default=(0.9, 0.999), description="of the optimizers of the Adam, AdEMAMix and Lion families"
    )
    neftune_alpha: Positive | None = Field(
        default=None, description="uniform noise on the embeddings in training (NEFTune); null: none"
    )
    weight_decay: NotNegative = Field(default=0.0, description="of matrices, never of norms and biases")
    max_grad_norm: NotNegative = Field(default=1.0, description="gradients are clipped to this norm; 0: never")
    precision: Literal["bf16", "fp16", "fp32"] = Field(default="bf16", description="of the computation")
    gradient_checkpointing: bool = Field(default=True, description="compute activations again instead of keeping them")
    backend: Literal["deepspeed", "fsdp2", "ddp"] = Field(
        default="deepspeed",
        description="deepspeed: with zero_stage (stage 0 under torchrun is DDP); fsdp2: PyTorch's own, ranks share "
        "weights, gradients and optimizer state; ddp: every rank has all of them",
    )
    zero_stage: Annotated[Literal[0, 1, 2, 3], ExactInt] = Field(
        default=2, description="backend deepspeed; ranks share: 1 optimizer state, 2 also gradients, 3 also weights"
    )
    offload_optimizer: bool = Field(default=False, description="optimizer state is kept in the memory of the host")
    offload_parameters: bool = Field(
        default=False, description="weights are kept in the memory of the host; zero_stage 3 only"
    )
    deepspeed: str | None = Field(
        default=None, description="your own DeepSpeed JSON file, in place of zero_stage and offload_*"
    )
    save_steps: Count = Field(default=500, description="steps between checkpoints; the last step is always saved")
    save_total_limit: Count | None = Field(
        default=3, description="newest checkpoints that are kept, in addition to the best; null: all"
    )
    eval_steps: Count | None = Field(default=None, description="steps between validations; null: at every checkpoint")
    eval_budgets: Several[Keep] = Field(
        default=(1.0, 0.333, 0.111), description="validation is repeated at each budget"
    )
    best_metric: str | None = Field(
        default=None,
        description="metric of the validation for the best checkpoint, such as loss; null: the newest is best",
    )
    early_stopping_patience: Count | None = Field(
        default=None,
        description="the run ends after so many validations in a row without a better best_metric (null: loss)",
    )
    early_stopping_threshold: NotNegative = Field(
        default=0.0, description="a smaller change of best_metric does not count as better"
    )
    resume: Text = Field(
        default="auto", description="auto: from the newest complete checkpoint; never; or the folder of one"
    )
    logging_steps: Count = Field(default=10, description="steps between lines of metrics")
    overlay_steps: Count | None = Field(
        default=None, description="steps between drawings of the kept tokens of a few validation images; null: never"
    )
    seed: NotNegativeInt = Field(default=0, description="of dropout, new adapters and drawn budgets")
    on_nan: Literal["skip", "stop"] = Field(default="stop", description="what happens at a NaN or Inf loss or gradient")
    on_save_error: Literal["stop", "continue"] = Field(
        default="stop", description="what happens when a checkpoint cannot be written"
    )
    timeout_seconds: Count = Field(default=1800, description="a rank that makes no progress for longer ends the run")
    push_to_hub: (
        Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$"), Words("a repository, such as my-org/my-model")] | None
    ) = Field(
        default=None,
        description="repository on the hub to which the best checkpoint (or the newest) is uploaded when the run "
        "ends; a new one is private, and the token is that of the variable HF_TOKEN or of `hf auth login`",
    )
    liger: bool = Field(default=False, description="fused kernels of the liger-kernel package")
    hf: dict[str, Any] = Field(
        default_factory=dict,
        description="other arguments of transformers' `TrainingArguments` by their names, such as "
        "`{adam_epsilon: 1.0e-6, tf32: true}`",
    )

    @property
    def requires_deepspeed(self) -> bool:
        return bool(self.deepspeed or self.offload_optimizer or self.offload_parameters)


class Preference(Section):
    """Preference and RL training (`train.method`) by TRL's own trainers. Rollout, reference and update of a row share
    one choice of visual tokens."""

    beta: NotNegative | None = Field(
        default=None, description="weight of the divergence from the reference; null: TRL's default for the method"
    )
    rewards: Several[Text] = Field(
        default=(), description="grpo: functions, each `package.module:function`, called as TRL calls them"
    )
    num_generations: Annotated[int, Field(ge=2)] = Field(default=8, description="grpo: rollouts of each prompt")
    max_completion_length: Count = Field(default=256, description="grpo: longest rollout in tokens")
    trl: dict[str, Any] = Field(
        default_factory=dict,
        description="other arguments of TRL's `DPOConfig` or `GRPOConfig` by their names, such as "
        "`{loss_type: [ipo]}` or `{temperature: 0.8}`",
    )


class Log(Section):
    """Experiment trackers, in addition to metrics.jsonl, which is always written."""

    report_to: Several[Literal["wandb", "tensorboard", "none"]] = Field(default=(), description="the trackers")
    project: Text = Field(default="dart-train", description="project of the tracker")
    name: str | None = Field(default=None, description="name of the run; null: the name of its folder")
    group: str | None = Field(default=None, description="of runs that belong together")
    tags: Several[str] = Field(default=(), description="to find the run by")
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="of W&B; auto: offline where there is no key"
    )
