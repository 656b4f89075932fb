"""What the laws are built from: forwards, a few weights to train, differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ..attach.anatomy import dissect

STEPS = 8


@torch.no_grad()
def logits_of(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, L, V]."""
    return model(**inputs, use_cache=False).logits


@torch.no_grad()
def greedy(model: Any, inputs: Mapping[str, Any], use_cache: bool) -> Any:
    """STEPS new tokens and their logits. Visual tokens stay out: no forward takes one without its picture."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=list(dissect(model).visual_ids),
        pad_token_id=model.generation_config.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )
    return model.generate(**inputs, generation_config=config)


@contextmanager
def only_few_trained(model: nn.Module, layer: int) -> Iterator[dict[str, nn.Parameter]]:
    """All other parameters frozen for a while: a check must fit where the model fits."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    layers = dissect(model).layers
    few = {f"layer {i}": _smallest_weight(layers[i]) for i in sorted({0, layer, len(layers) - 1})}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in few.values():
            parameter.requires_grad_(True)
        yield few
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _smallest_weight(layer: nn.Module) -> nn.Parameter:
    weights = [p for name, p in layer.named_parameters() if name.endswith("weight") and p.is_floating_point()]
    return min(weights, key=lambda weight: weight.numel())


def last_tokens(real: Tensor, number: int) -> Tensor:
    """[B, L] bool: the last `number` real tokens of each row."""
    behind = real.long().flip(1).cumsum(1).flip(1)
    return real & (behind <= number)


def apart(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, relative to the largest value of b; not a number where either has one."""
    if where is not None:
        a, b = a[where], b[where]
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def worst(differences: Iterable[float]) -> float:
    """The largest; not a number as soon as one is (which Python's max would pass over)."""
    return float(torch.tensor(list(differences)).max())


def count_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
