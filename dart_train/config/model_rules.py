"""Rules of the sections `model` and `parts`."""

from __future__ import annotations

from collections.abc import Iterator

from .errors import ConfigIssue
from .schema import Recipe


def check_model(recipe: Recipe) -> Iterator[ConfigIssue]:
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


def check_parts(recipe: Recipe) -> Iterator[ConfigIssue]:
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


def check_quantization(recipe: Recipe) -> Iterator[ConfigIssue]:
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
