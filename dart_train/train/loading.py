"""The model of a recipe: what can be known without its weights, and the weights."""

from __future__ import annotations

from typing import Any

from ..attach.anatomy import dissect
from ..checkpoint.kernels import attention_kernel
from ..checkpoint.weights import Source, bones, read_config, read_model
from ..recipe import Model, Recipe
from .parts import choose_parameters

_HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def skeleton(recipe: Recipe) -> Any:
    """The model without weights, its parameters chosen: finds an unknown folder, a model that cannot be reduced and
    adapters with no place in a second, and knows every parameter's size."""
    attention(recipe.model)
    given = recipe.model
    model = bones(read_config(given.path, given.revision, given.trust_remote_code, "model.path"))
    depth = len(dissect(model).layers)
    for reducer in recipe.reduction.reducers():
        if reducer.layer >= depth:
            raise ValueError(f"reduction.layer: {reducer.layer} given, the model has {depth} layers: 0 to {depth - 1}")
    return choose_parameters(model, recipe.parts)


def load_model(recipe: Recipe) -> Any:
    model = recipe.model
    dtype = _HALF[recipe.train.precision] if model.dtype == "auto" else model.dtype
    return read_model(Source(model.path, model.revision, model.trust_remote_code), dtype, attention(model))


def attention(model: Model) -> str:
    """The kernel to use; one that is asked for and missing is told before any weight is read."""
    return attention_kernel(model.attn_implementation, "model.attn_implementation")


def keep_masters(model: Any) -> None:
    """Without DeepSpeed nobody keeps float32 copies of half-precision weights: those that train are the copies."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
