"""An adapter put on its base model, or made part of its weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def put_on(model: Any, adapter: str, merge: bool) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
        adapted = PeftModel.from_pretrained(model, adapter)
    return merged(adapted) if merge else adapted


@torch.no_grad()
def merged(adapted: Any) -> Any:
    """The plain model with the adapter in its weights. Each merged weight is held against the exact sum, so that
    nothing more than its dtype's rounding comes between them."""
    from peft.tuners.lora import LoraLayer

    wrong = []
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            wrong += [name] * (not _merge(layer))
    if wrong:
        raise RuntimeError(f"the adapter could not be merged within its dtype's rounding at {', '.join(wrong[:3])}")
    return adapted.base_model.unload()


def _merge(layer: Any) -> bool:
    exact = _sum(layer)
    layer.merge(safe_merge=False)
    weight: Tensor = layer.get_base_layer().weight
    return exact is None or bool(((weight.float() - exact).abs() <= _rounding(exact, weight.dtype)).all())


def _sum(layer: Any) -> Tensor | None:
    """Base and low-rank update in float32; None for variants whose update is no plain sum."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant for name in active) or not active:
        return None
    exact = layer.get_base_layer().weight.float().clone()
    for name in active:
        delta = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
        exact += delta.T if layer.fan_in_fan_out else delta
    return exact


def _rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What a number may move by when it is rounded, and float32 sums on the way."""
    facts = torch.finfo(dtype)
    return exact.abs() * (facts.eps + 1e-5) + 1e-6 * exact.abs().max() + facts.tiny
