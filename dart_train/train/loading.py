"""The model of a recipe: what can be known without its weights, and the weights."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..attach.anatomy import dissect
from ..recipe import Model, Recipe
from .parts import choose_parameters

_HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def skeleton(recipe: Recipe) -> Any:
    """The model without weights, its parameters chosen: finds an unknown folder, a model that cannot be reduced and
    adapters with no place in a second, and knows every parameter's size."""
    attention(recipe.model)
    config = read_config(recipe.model)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    depth = len(dissect(model).layers)
    for reducer in recipe.reduction.reducers():
        if reducer.layer >= depth:
            raise ValueError(f"reduction.layer: {reducer.layer} given, the model has {depth} layers: 0 to {depth - 1}")
    return choose_parameters(model, recipe.parts)


def read_config(model: Model) -> Any:
    try:
        return AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"model.path: {model.path!r} holds no model that can be read ({first}); "
            "give a folder with config.json and weights, or a hub id that this machine can reach"
        ) from error


def load_model(recipe: Recipe) -> Any:
    model = recipe.model
    return AutoModelForImageTextToText.from_pretrained(
        model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        dtype=getattr(torch, _HALF[recipe.train.precision] if model.dtype == "auto" else model.dtype),
        attn_implementation=attention(model),
    )


def attention(model: Model) -> str:
    """The kernel to use; one that is asked for and missing is told before any weight is read."""
    asked = model.attn_implementation
    if asked == "auto":
        flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
        return "flash_attention_2" if flash else "sdpa"
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(asked)
    if package is None:
        return asked
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"model.attn_implementation: {asked} needs the package {package}, which is not installed; install it, or "
            "choose sdpa (PyTorch's own flash kernel is inside it) or auto"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"model.attn_implementation: {asked} needs a GPU; choose sdpa")
    return asked


def keep_masters(model: Any) -> None:
    """Without DeepSpeed nobody keeps float32 copies of half-precision weights: those that train are the copies."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
