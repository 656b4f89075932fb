"""Rules of the sections `train`, `preference` and `log`."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import ConfigIssue
from .hf_arguments import find_reserved
from .schema import Preference, Recipe, Train

WITH_BETAS = ("adam", "lion", "ademamix")  # in an optimizer's name
NOT_SPLIT = ("adafactor",)
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")  # by FSDP2


def check_steps(recipe: Recipe) -> Iterator[ConfigIssue]:
    train = recipe.train
    if train.epochs is None and train.max_steps is None:
        yield ConfigIssue("train.epochs", "neither epochs nor max_steps is given", "give one of them")
    for key in ("best_metric", "eval_steps", "overlay_steps", "early_stopping_patience"):
        if getattr(train, key) is not None and not recipe.data.validation:
            yield ConfigIssue(f"train.{key}", "needs a validation set", "give data.validation, or leave it out")
    if train.early_stopping_threshold and train.early_stopping_patience is None:
        yield ConfigIssue("train.early_stopping_threshold", "given without early_stopping_patience", "give both")
    best = train.best_metric
    if best is not None and best.removeprefix("eval_") not in _validation_metrics(recipe):
        yield ConfigIssue(
            "train.best_metric", f"given {best!r}, expected one of {', '.join(_validation_metrics(recipe))}"
        )


def _validation_metrics(recipe: Recipe) -> list[str]:
    """Names of what validation measures: at the budget that is served, and at each of eval_budgets."""
    budgets = recipe.train.eval_budgets if recipe.reduction.stages else ()
    full = [isinstance(keep, float) and keep == 1.0 for keep in budgets]
    at = [f"_at_{'full' if is_full else f'{keep:g}'}" for keep, is_full in zip(budgets, full, strict=True)]
    return [f"{name}{suffix}" for suffix in ["", *at] for name in ("loss", "accuracy")]


def check_optimizer(recipe: Recipe) -> Iterator[ConfigIssue]:
    train = recipe.train
    yield from find_reserved(train.hf)
    if len(train.adam_betas) != 2:
        yield ConfigIssue(
            "train.adam_betas", f"given {list(train.adam_betas)}, expected two numbers, such as [0.9, 0.95]"
        )
    elif train.adam_betas != Train().adam_betas and not any(word in train.optimizer for word in WITH_BETAS):
        yield ConfigIssue("train.adam_betas", f"given, but {train.optimizer} has no betas", "leave them out")
    split = train.backend == "deepspeed" and not train.deepspeed and train.zero_stage > 0
    if train.optimizer in NOT_SPLIT and split:
        what = f"{train.optimizer} needs complete matrices, which no rank has at zero_stage {train.zero_stage}"
        yield ConfigIssue("train.optimizer", what, "choose an Adam, or zero_stage 0")
    if train.offload_optimizer and train.optimizer not in ("adamw_torch", "adamw_torch_fused"):
        what = f"{train.optimizer} has no counterpart on the CPU that DeepSpeed could offload it to"
        yield ConfigIssue("train.optimizer", what, "choose adamw_torch, or offload_optimizer false")
    if train.min_learning_rate is not None and train.lr_scheduler != "cosine":
        what = f"needs lr_scheduler cosine, given {train.lr_scheduler}"
        yield ConfigIssue("train.min_learning_rate", what, "choose cosine, or leave it out")
    elif train.min_learning_rate is not None and train.min_learning_rate > train.learning_rate:
        what = f"{train.min_learning_rate} is above train.learning_rate {train.learning_rate}"
        yield ConfigIssue("train.min_learning_rate", what, "expected min_learning_rate <= learning_rate")
    options = train.hf.get("lr_scheduler_kwargs")
    decay = isinstance(options, dict) and "num_decay_steps" in options
    if train.lr_scheduler == "warmup_stable_decay" and not decay:
        remedy = "give train.hf.lr_scheduler_kwargs, such as {num_decay_steps: 100}"
        yield ConfigIssue("train.lr_scheduler", "warmup_stable_decay needs to know when the decay begins", remedy)


def check_backend(recipe: Recipe) -> Iterator[ConfigIssue]:
    train = recipe.train
    if train.backend == "deepspeed":
        return
    what = f"given, but train.backend is {train.backend}"
    for key in ("deepspeed", "offload_optimizer", "offload_parameters"):
        if getattr(train, key):
            yield ConfigIssue(f"train.{key}", what, "leave it out, or choose backend deepspeed")
    if train.zero_stage not in (0, Train().zero_stage):
        yield ConfigIssue("train.zero_stage", f"{train.zero_stage} {what}", "leave it out, or choose backend deepspeed")
    if train.backend == "fsdp2":
        yield from _fsdp2(recipe)


def _fsdp2(recipe: Recipe) -> Iterator[ConfigIssue]:
    train, without, instead = recipe.train, "not available with train.backend fsdp2", "choose backend deepspeed, or "
    if train.method != "sft":
        yield ConfigIssue("train.method", f"{train.method} is {without}", f"{instead}method sft")
    kind = recipe.model.quantization
    if kind != "none":
        remedy = "choose backend ddp or deepspeed, or quantization none"
        yield ConfigIssue("model.quantization", f"{kind} weights cannot be shared by train.backend fsdp2", remedy)
    if train.precision == "fp16":
        what = f"fp16 needs a loss that is scaled, which is {without}"
        yield ConfigIssue("train.precision", what, f"{instead}precision bf16")
    for i, stage in enumerate(recipe.reduction.stages):
        if stage.get("method") == "learned":
            what = f"the scorers of learned are {without}"
            yield ConfigIssue(f"reduction.stages.{i}", what, f"{instead}a method without scorers")
    if train.liger:
        what = f"kernels that replace modules after they were sharded are {without}"
        yield ConfigIssue("train.liger", what, f"{instead}liger false")
    if train.optimizer not in SHARDED_OPTIMIZERS:
        remedy = f"{instead}one of {', '.join(SHARDED_OPTIMIZERS)}"
        yield ConfigIssue("train.optimizer", f"{train.optimizer} is {without}", remedy)


def check_ranks(recipe: Recipe) -> Iterator[ConfigIssue]:
    train = recipe.train
    if train.offload_parameters and train.zero_stage != 3:
        what = f"needs zero_stage 3, given {train.zero_stage}"
        yield ConfigIssue("train.offload_parameters", what, "set train.zero_stage to 3")
    if train.offload_optimizer and train.zero_stage == 0:
        yield ConfigIssue("train.offload_optimizer", "needs zero_stage 1 or more, given 0", "set train.zero_stage")
    if train.deepspeed and (train.offload_optimizer or train.offload_parameters):
        yield ConfigIssue("train.deepspeed", "given together with offload_*", "write it in the DeepSpeed file only")


def check_log(recipe: Recipe) -> Iterator[ConfigIssue]:
    if "none" in recipe.log.report_to and len(recipe.log.report_to) > 1:
        yield ConfigIssue("log.report_to", "none given together with others", "leave out none, or the others")


def check_preference(recipe: Recipe) -> Iterator[ConfigIssue]:
    method = recipe.train.method
    if method == "sft":
        if recipe.preference != Preference():
            yield ConfigIssue("preference", "given, but train.method is sft", "choose dpo or grpo, or leave it out")
        return
    rewards = recipe.preference.rewards
    if method == "grpo" and not rewards:
        yield ConfigIssue("preference.rewards", "missing", "grpo needs a function, such as my_package.rewards:exact")
    if method == "dpo" and rewards:
        yield ConfigIssue("preference.rewards", "given, but dpo learns from pairs", "leave them out, or choose grpo")
    for i, name in enumerate(rewards):
        if name.count(":") != 1 or not all(name.split(":")):
            yield ConfigIssue(f"preference.rewards.{i}", f"given {name!r}, expected package.module:function")
    if recipe.distill.enabled:
        yield ConfigIssue("distill.enabled", f"not available with {method}", "set it to false")
    if recipe.trains_scorer:
        remedy = "train the scorer first, then give scorer.path and scorer.train false"
        yield ConfigIssue("scorer.train", f"scorers do not learn from {method}", remedy)
    if recipe.model.quantization != "none":
        yield ConfigIssue("model.quantization", f"not available with {method}", "choose none")
    if recipe.reduction.tower is not None and recipe.parts.vision.mode != "frozen":
        what = "a tower that is trained would choose other units in the update than in the rollout"
        yield ConfigIssue("reduction.tower", what, "set parts.vision.mode to frozen, or leave out the tower's stage")
    if method == "grpo" and recipe.data.validation:
        yield ConfigIssue("data.validation", "grpo has rewards in place of a validation loss", "leave it out")
    for i, source in enumerate(recipe.data.train):
        if source.streaming or source.weight != 1.0:
            key = "streaming" if source.streaming else "weight"
            yield ConfigIssue(f"data.train.{i}.{key}", f"not available with {method}", "leave it out")
    if recipe.train.overlay_steps is not None:
        yield ConfigIssue("train.overlay_steps", f"not available with {method}", "leave it out")
    if recipe.train.padding_free:
        yield ConfigIssue(
            "train.padding_free", f"not available with {method}: TRL makes its batches", "set it to false"
        )
