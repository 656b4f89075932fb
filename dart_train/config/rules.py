"""Combinations that cannot work. Each rule looks at the entire recipe, and its issues name the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..common.metrics import unknown_metric
from ..reduction.schedule import Elastic, Fixed, Progressive
from .errors import ConfigIssue
from .hf_arguments import find_hf_errors, find_reserved
from .methods import REDUCTION_ALIAS, duplicate_labels, expand_reduction_alias, read_method
from .schema import Data, Preference, Recipe, Train

WITH_BETAS = ("adam", "lion", "ademamix")  # in an optimizer's name
NOT_SPLIT = ("adafactor",)
SHARDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")  # by FSDP2


def find_conflicts(recipe: Recipe) -> Iterator[ConfigIssue]:
    """All combinations that cannot work, without importing torch."""
    for rule in RULES:
        yield from rule(recipe)


def find_method_errors(recipe: Recipe) -> Iterator[ConfigIssue]:
    """What the reducers report about methods and their options. Imports torch."""
    from ..reduction import from_config, tower_from_config

    for i, stage in enumerate(recipe.reduction.stages):
        try:
            from_config(stage)
        except ValueError as error:
            yield ConfigIssue(f"reduction.stages.{i}", str(error))
    if recipe.reduction.tower is not None:
        try:
            tower_from_config(recipe.reduction.tower)
        except ValueError as error:
            yield ConfigIssue("reduction.tower", str(error).removeprefix("tower: "))
    yield from find_hf_errors(recipe.train.hf)
    if recipe.distill.enabled and recipe.distill.reduction is not None and recipe.reduction.stages:
        yield from _teacher_stage(recipe)
    yield from _methods(recipe)


def _teacher_stage(recipe: Recipe) -> Iterator[ConfigIssue]:
    from ..reduction import from_config
    from ..reduction.teacher_stage import teacher_stage, why_not_teacher_stage

    try:
        student = from_config(recipe.reduction.stages[0])
    except ValueError:
        return  # reported as that of reduction.stages
    try:
        problem = why_not_teacher_stage(teacher_stage(recipe.distill, student.keep), student)
    except ValueError as error:
        problem = str(error)
    if problem:
        yield ConfigIssue("distill.reduction", problem)


def _model(recipe: Recipe) -> Iterator[ConfigIssue]:
    model, precision = recipe.model, recipe.train.precision
    if model.attn_implementation.startswith("flash") and model.dtype == "float32":
        what = f"{model.attn_implementation} cannot compute float32"
        yield ConfigIssue("model.attn_implementation", what, "choose dtype bfloat16 or float16, or attention sdpa")
    if not recipe.data.train:
        return
    clash = {"fp16": ("bfloat16",), "bf16": ("float16",), "fp32": ("bfloat16", "float16")}[precision]
    if model.dtype in clash:
        fitting = {"bfloat16": "bf16", "float16": "fp16"}[model.dtype]
        remedy = f"choose precision {fitting}, or dtype float32"
        yield ConfigIssue("train.precision", f"{precision} does not work with model.dtype {model.dtype}", remedy)


def _reduction(recipe: Recipe) -> Iterator[ConfigIssue]:
    reduction, path = recipe.reduction, "reduction.schedule"
    schedule = reduction.schedule
    if not isinstance(schedule, Fixed) and len(reduction.stages) > 1:
        remedy = "use kind fixed, or one stage"
        yield ConfigIssue(path, f"{schedule.kind} moves one budget, given {len(reduction.stages)} stages", remedy)
    for i, stage in enumerate(reduction.stages):
        if "keep" not in stage and stage.get("method") != "keep_all":
            yield ConfigIssue(f"reduction.stages.{i}.keep", "missing", "expected a number of tokens or a ratio")
    if isinstance(schedule, Elastic) and not schedule.choices:
        yield ConfigIssue(f"{path}.choices", "empty", "name at least one budget, such as [1.0, 0.333]")
    if isinstance(schedule, Progressive):
        for when in ("start", "end"):
            low, high = getattr(schedule, f"{when}_low"), getattr(schedule, f"{when}_high")
            if low > high:
                remedy = f"expected {when}_low <= {when}_high"
                yield ConfigIssue(f"{path}.{when}_low", f"{low} is above {when}_high {high}", remedy)


def _parts(recipe: Recipe) -> Iterator[ConfigIssue]:
    parts = recipe.parts.named()
    if all(part.mode == "frozen" for part in parts.values()) and not recipe.trains_scorer:
        yield ConfigIssue(
            "parts", "all parts are frozen, so that nothing would be trained", "set a mode to lora or full"
        )
    for name, part in parts.items():
        if part.mode == "frozen" and part.learning_rate is not None:
            remedy = f"leave it out, or set parts.{name}.mode to lora or full"
            yield ConfigIssue(f"parts.{name}.learning_rate", "given for a frozen part", remedy)
    if recipe.parts.lora.modules_to_save and all(part.mode != "lora" for part in parts.values()):
        what = "given, but no part has mode lora"
        yield ConfigIssue("parts.lora.modules_to_save", what, "set a mode to lora, or leave it out")
    if recipe.parts.lora.targets == ():
        yield ConfigIssue("parts.lora.targets", "empty", "name layers, or null for all linear layers")


def _quantization(recipe: Recipe) -> Iterator[ConfigIssue]:
    kind, train = recipe.model.quantization, recipe.train
    if kind == "none" or not recipe.data.train:
        return
    if recipe.parts.language.mode == "full":
        what = f"{kind} weights cannot be trained, given parts.language.mode full"
        yield ConfigIssue("model.quantization", what, "set the mode to lora (QLoRA), or quantization to none")
    if train.zero_stage == 3 and not train.deepspeed:
        what = f"{kind} weights cannot be partitioned by train.zero_stage 3"
        yield ConfigIssue("model.quantization", what, "choose zero_stage 2, or quantization none")
    if recipe.trains_scorer_alone:
        what = f"{kind} changes the attention that scorers learn from, and no weight of the model is trained"
        yield ConfigIssue("model.quantization", what, "choose none")


def _scorer(recipe: Recipe) -> Iterator[ConfigIssue]:
    if not recipe.has_scorer or not recipe.data.train:
        return
    if not recipe.scorer.train and recipe.scorer.path is None:
        remedy = "set scorer.train to true, or scorer.path to a run, checkpoint or export that has them"
        yield ConfigIssue("scorer.train", "false, and no trained scorers are given", remedy)
    scorer = recipe.scorer
    if recipe.trains_scorer and not scorer.attention and not scorer.task:
        remedy = "give it or scorer.task a weight, or set train: false"
        yield ConfigIssue("scorer.attention", "0, as is scorer.task, so that scorers would not learn", remedy)
    if recipe.trains_scorer and scorer.temperature_end > scorer.temperature_start:
        what = f"{scorer.temperature_end} is above temperature_start {scorer.temperature_start}"
        yield ConfigIssue("scorer.temperature_end", what, "expected temperature_end <= temperature_start")
    if recipe.trains_scorer and scorer.attention and recipe.distill.enabled and recipe.distill.teacher != "full":
        what = f"{recipe.distill.teacher}, but scorers learn from the attention of a teacher at full tokens"
        yield ConfigIssue("distill.teacher", what, "choose full, or scorer.attention 0")


def _data(recipe: Recipe) -> Iterator[ConfigIssue]:
    data = recipe.data
    if data.min_pixels and data.max_pixels and data.min_pixels > data.max_pixels:
        what = f"{data.min_pixels} is above data.max_pixels {data.max_pixels}"
        yield ConfigIssue("data.min_pixels", what, "expected min_pixels <= max_pixels")
    problem = _template_problem(data)
    if problem is not None:
        yield ConfigIssue("data.template", problem, "give a Jinja file, or its text")
    streamed = any(source.streaming for source in data.train)
    if streamed and data.group_by_length:
        yield ConfigIssue(
            "data.group_by_length",
            "needs all lengths in advance, which a streaming source does not have",
            "set it to false",
        )
    if streamed and data.turns == "apart":
        what = "apart, but the answers of streamed rows cannot be counted in advance"
        yield ConfigIssue("data.turns", what, "choose together, or write one row for each answer")
    if streamed and recipe.train.max_steps is None:
        yield ConfigIssue("train.max_steps", "missing", "a streaming source has no length to count epochs by")


def _template_problem(data: Data) -> str | None:
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        source = data.template_text()
    except ValueError as error:
        return str(error)
    if source is None:
        return None
    # {% generation %} is a block of transformers' own, which checks its ends when the template is compiled
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
    try:
        ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(plain)
    except TemplateSyntaxError as error:
        return f"not a Jinja template: {error.message}, line {error.lineno}"
    return None


def _packing(recipe: Recipe) -> Iterator[ConfigIssue]:
    train, data = recipe.train, recipe.data
    if train.padding_free and data.pad_to_multiple_of:
        what = f"{data.pad_to_multiple_of}, but train.padding_free leaves nothing to pad"
        yield ConfigIssue("data.pad_to_multiple_of", what, "leave one of them out")
    if train.tokens_per_batch is None:
        return
    path = "train.tokens_per_batch"
    if not train.padding_free:
        yield ConfigIssue("train.padding_free", f"false, but {path} needs it", "set it to true")
    if train.per_device_batch_size != 1:
        what = f"given {train.per_device_batch_size}, together with {path}"
        yield ConfigIssue("train.per_device_batch_size", what, "leave one of them out")
    if any(source.streaming for source in data.train):
        what = "needs all lengths in advance, which a streaming source does not have"
        yield ConfigIssue(path, what, "use train.per_device_batch_size, or read the source from disk")
    elif data.allow_urls and not data.group_by_length:
        what = "needs all lengths in advance, and the size of an image that is fetched is a download"
        yield ConfigIssue(path, what, "store the images on disk, or accept it with data.group_by_length true")


def _distill(recipe: Recipe) -> Iterator[ConfigIssue]:
    if recipe.distill.enabled and not recipe.reduction.stages:
        remedy = "set distill.enabled to false, or choose a reduction"
        yield ConfigIssue("distill.enabled", "without a reduction teacher and student are the same", remedy)
    own, given = recipe.distill.teacher == "reduction", recipe.distill.reduction is not None
    if recipe.distill.enabled and own and not given:
        what = "missing, but distill.teacher is reduction"
        yield ConfigIssue("distill.reduction", what, "give the teacher's, such as {method: dart, layer: 2}")
    if given and not own:
        what = f"given, but distill.teacher is {recipe.distill.teacher}"
        yield ConfigIssue("distill.reduction", what, "choose teacher: reduction, or leave it out")


def _steps(recipe: Recipe) -> Iterator[ConfigIssue]:
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


def _optimizer(recipe: Recipe) -> Iterator[ConfigIssue]:
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


def _backend(recipe: Recipe) -> Iterator[ConfigIssue]:
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
    if train.optimizer not in SHARDED_OPTIMIZERS:
        remedy = f"{instead}one of {', '.join(SHARDED_OPTIMIZERS)}"
        yield ConfigIssue("train.optimizer", f"{train.optimizer} is {without}", remedy)


def _ranks(recipe: Recipe) -> Iterator[ConfigIssue]:
    train = recipe.train
    if train.offload_parameters and train.zero_stage != 3:
        what = f"needs zero_stage 3, given {train.zero_stage}"
        yield ConfigIssue("train.offload_parameters", what, "set train.zero_stage to 3")
    if train.offload_optimizer and train.zero_stage == 0:
        yield ConfigIssue("train.offload_optimizer", "needs zero_stage 1 or more, given 0", "set train.zero_stage")
    if train.deepspeed and (train.offload_optimizer or train.offload_parameters):
        yield ConfigIssue("train.deepspeed", "given together with offload_*", "write it in the DeepSpeed file only")


def _log(recipe: Recipe) -> Iterator[ConfigIssue]:
    if "none" in recipe.log.report_to and len(recipe.log.report_to) > 1:
        yield ConfigIssue("log.report_to", "none given together with others", "leave out none, or the others")


def _compare(recipe: Recipe) -> Iterator[ConfigIssue]:
    for key in ("methods", "budgets", "metrics"):
        if not getattr(recipe.compare, key):
            yield ConfigIssue(f"compare.{key}", "empty", "name at least one, or leave the key out")
    for path, name in _metric_names(recipe):
        wrong = unknown_metric(name)
        if wrong:
            yield ConfigIssue(path, wrong)
    yield from _question_sets(recipe)


def _methods(recipe: Recipe) -> Iterator[ConfigIssue]:
    own, wrong = recipe.reduction, False
    given = expand_reduction_alias(recipe.compare.methods, own.stages, own.tower)
    for i, method in enumerate(recipe.compare.methods):
        try:
            if method == REDUCTION_ALIAS and not recipe.reduction.stages:
                raise ValueError("the recipe's reduction is none; name a method, or give a reduction")
            unknown = set(read_method(given[i]).checkpoints) - set(recipe.compare.checkpoints)
            if unknown:
                known = ", ".join(recipe.compare.checkpoints) or "none"
                raise ValueError(
                    f"checkpoints: {', '.join(sorted(unknown))} not in compare.checkpoints, which has {known}"
                )
        except ValueError as error:
            wrong = True
            yield ConfigIssue(f"compare.methods.{i}", str(error))
    for i, label in [] if wrong else duplicate_labels(given):
        remedy = "leave one out, or give it a name of its own"
        yield ConfigIssue(f"compare.methods.{i}", f"has the name {label!r}, as an earlier method does", remedy)


def _metric_names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    given = {"compare.metrics": recipe.compare.metrics}
    for i, each in enumerate(recipe.compare.sets):
        given[f"compare.sets.{i}.metrics"] = each.metrics
        given |= {f"compare.sets.{i}.kind_metrics.{kind}": names for kind, names in each.kind_metrics.items()}
    for path, names in given.items():
        yield from ((f"{path}.{i}", name) for i, name in enumerate(names))


def _question_sets(recipe: Recipe) -> Iterator[ConfigIssue]:
    for i, each in enumerate(recipe.compare.sets):
        if each.streaming:
            remedy = "leave it out, and give a limit where the set is large"
            yield ConfigIssue(
                f"compare.sets.{i}.streaming", "not supported here: every checkpoint answers the same questions", remedy
            )


def _preference(recipe: Recipe) -> Iterator[ConfigIssue]:
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
    if recipe.train.zero_stage == 3:
        what = f"{method} at stage 3 needs reentrant checkpointing, in which the recorded keys are lost"
        yield ConfigIssue("train.zero_stage", what, "choose 0, 1 or 2")
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


RULES = (
    _preference,
    _model,
    _reduction,
    _scorer,
    _parts,
    _quantization,
    _data,
    _packing,
    _distill,
    _steps,
    _optimizer,
    _backend,
    _ranks,
    _log,
    _compare,
)
