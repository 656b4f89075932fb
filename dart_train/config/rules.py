"""Combinations that cannot work: each rule looks at a whole recipe and says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..common.metrics import unknown_metric
from ..reduction.schedule import Elastic, Fixed, Progressive
from .errors import Problem
from .methods import OWN, duplicate_labels, expand_reduction_alias, read_method

if TYPE_CHECKING:
    from .recipe import Recipe


def impossible(recipe: Recipe) -> Iterator[Problem]:
    """Every rule that the recipe breaks."""
    for rule in (_model, _reduction, _parts, _data, _distill, _steps, _ranks, _log, _compare):
        yield from rule(recipe)


def _model(recipe: Recipe) -> Iterator[Problem]:
    model, precision = recipe.model, recipe.train.precision
    if model.attn_implementation.startswith("flash") and model.dtype == "float32":
        what = f"{model.attn_implementation} cannot compute float32"
        yield Problem("model.attn_implementation", what, "choose dtype bfloat16 or float16, or attention sdpa")
    if not recipe.data.train:
        return
    clash = {"fp16": ("bfloat16",), "bf16": ("float16",), "fp32": ("bfloat16", "float16")}[precision]
    if model.dtype in clash:
        fitting = {"bfloat16": "bf16", "float16": "fp16"}[model.dtype]
        remedy = f"choose precision {fitting}, or dtype float32"
        yield Problem("train.precision", f"{precision} does not go with model.dtype {model.dtype}", remedy)


def _reduction(recipe: Recipe) -> Iterator[Problem]:
    reduction, path = recipe.reduction, "reduction.schedule"
    schedule = reduction.schedule
    if not isinstance(schedule, Fixed) and len(reduction.stages) > 1:
        remedy = "use kind fixed, or one stage"
        yield Problem(path, f"{schedule.kind} moves one budget, given {len(reduction.stages)} stages", remedy)
    if isinstance(schedule, Elastic) and not schedule.choices:
        yield Problem(f"{path}.choices", "empty", "name at least one budget, such as [1.0, 0.333]")
    if isinstance(schedule, Progressive):
        for when in ("start", "end"):
            low, high = getattr(schedule, f"{when}_low"), getattr(schedule, f"{when}_high")
            if low > high:
                remedy = f"expected {when}_low <= {when}_high"
                yield Problem(f"{path}.{when}_low", f"{low} is above {when}_high {high}", remedy)


def _parts(recipe: Recipe) -> Iterator[Problem]:
    parts = recipe.parts.named()
    if all(part.mode == "frozen" for part in parts.values()):
        yield Problem("parts", "all parts are frozen, nothing would train", "set a mode to lora or full")
    for name, part in parts.items():
        if part.mode == "frozen" and part.learning_rate is not None:
            remedy = f"leave it out, or set parts.{name}.mode to lora or full"
            yield Problem(f"parts.{name}.learning_rate", "given for a frozen part", remedy)
    if recipe.parts.lora.targets == ():
        yield Problem("parts.lora.targets", "empty", "name layers, or null for all linear layers")


def _data(recipe: Recipe) -> Iterator[Problem]:
    data = recipe.data
    if data.min_pixels and data.max_pixels and data.min_pixels > data.max_pixels:
        what = f"{data.min_pixels} is above data.max_pixels {data.max_pixels}"
        yield Problem("data.min_pixels", what, "expected min_pixels <= max_pixels")
    streamed = any(source.streaming for source in data.train)
    if streamed and data.group_by_length:
        yield Problem("data.group_by_length", "needs every length beforehand", "not with a streaming source")
    if streamed and recipe.train.max_steps is None:
        yield Problem("train.max_steps", "missing", "a streaming source has no length to count epochs by")


def _distill(recipe: Recipe) -> Iterator[Problem]:
    if recipe.distill.enabled and not recipe.reduction.stages:
        remedy = "set distill.enabled to false, or choose a reduction"
        yield Problem("distill.enabled", "without a reduction teacher and student are the same", remedy)


def _steps(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if train.epochs is None and train.max_steps is None:
        yield Problem("train.epochs", "neither epochs nor max_steps is given", "give one of them")
    for key in ("best_metric", "eval_steps", "overlay_steps"):
        if getattr(train, key) is not None and not recipe.data.validation:
            yield Problem(f"train.{key}", "needs a validation set", "give data.validation, or leave it out")
    best = train.best_metric
    if best is not None and best.removeprefix("eval_") not in _judged(recipe):
        yield Problem("train.best_metric", f"given {best!r}, expected one of {', '.join(_judged(recipe))}")


def _judged(recipe: Recipe) -> list[str]:
    """What validation tells: at the budget that is served, and at each of eval_budgets."""
    budgets = recipe.train.eval_budgets if recipe.reduction.stages else ()
    full = [isinstance(keep, float) and keep == 1.0 for keep in budgets]
    at = [f"_at_{'full' if whole else f'{keep:g}'}" for keep, whole in zip(budgets, full, strict=True)]
    return [f"{name}{suffix}" for suffix in ["", *at] for name in ("loss", "accuracy")]


def _ranks(recipe: Recipe) -> Iterator[Problem]:
    train = recipe.train
    if train.offload_parameters and train.zero_stage != 3:
        what = f"needs zero_stage 3, given {train.zero_stage}"
        yield Problem("train.offload_parameters", what, "set train.zero_stage to 3")
    if train.offload_optimizer and train.zero_stage == 0:
        yield Problem("train.offload_optimizer", "needs zero_stage 1 or more, given 0", "set train.zero_stage")
    if train.deepspeed and (train.offload_optimizer or train.offload_parameters):
        yield Problem("train.deepspeed", "given beside offload_*", "say it in the DeepSpeed file alone")


def _log(recipe: Recipe) -> Iterator[Problem]:
    if "none" in recipe.log.report_to and len(recipe.log.report_to) > 1:
        yield Problem("log.report_to", "none beside others", "leave out none, or the others")


def _compare(recipe: Recipe) -> Iterator[Problem]:
    for key in ("methods", "budgets", "metrics"):
        if not getattr(recipe.compare, key):
            yield Problem(f"compare.{key}", "empty", "name at least one, or leave the key out")
    yield from _methods(recipe)
    for path, name in _metric_names(recipe):
        wrong = unknown_metric(name)
        if wrong:
            yield Problem(path, wrong)
    yield from _question_sets(recipe)


def _methods(recipe: Recipe) -> Iterator[Problem]:
    given, wrong = expand_reduction_alias(recipe.compare.methods, recipe.reduction.stages), False
    for i, method in enumerate(recipe.compare.methods):
        try:
            if method == OWN and not recipe.reduction.stages:
                raise ValueError("the recipe's reduction is none; name a method, or give a reduction")
            read_method(given[i])
        except ValueError as error:
            wrong = True
            yield Problem(f"compare.methods.{i}", str(error))
    for i, label in [] if wrong else duplicate_labels(given):
        remedy = "leave one out, or give it a name"
        yield Problem(f"compare.methods.{i}", f"called {label!r}, as one before it", remedy)


def _metric_names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    given = {"compare.metrics": recipe.compare.metrics}
    for i, each in enumerate(recipe.compare.sets):
        given[f"compare.sets.{i}.metrics"] = each.metrics
        given |= {f"compare.sets.{i}.kind_metrics.{kind}": names for kind, names in each.kind_metrics.items()}
    for path, names in given.items():
        yield from ((f"{path}.{i}", name) for i, name in enumerate(names))


def _question_sets(recipe: Recipe) -> Iterator[Problem]:
    for i, each in enumerate(recipe.compare.sets):
        if each.streaming:
            remedy = "leave it out, and give a limit where the set is large"
            yield Problem(f"compare.sets.{i}.streaming", "every row is asked the same questions", remedy)
