"""An adapter on its base model, or merged into its weights. Everything of peft that this package calls.

Read in peft 0.21.2: attributes of `LoraLayer` (`lora_A`, `lora_B`, `lora_variant`, `scaling`, `fan_in_fan_out`); that
`get_peft_model_state_dict` renames the tensors of a given `state_dict` and leaves them as they are.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..common.hub import cached_first


def apply_adapter(model: Any, adapter: str, merge: bool) -> Any:
    """The model with the adapter at `adapter`, a folder or a hub id: merged, or inside PEFT."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
        adapted = cached_first(lambda: PeftModel.from_pretrained(model, adapter), adapter)
    return merge_adapter(adapted) if merge else adapted


@torch.no_grad()
def merge_adapter(adapted: Any) -> Any:
    """The plain model with the adapter in its weights. Each merged weight is compared with the exact sum; it may differ
    by the rounding of its dtype only."""
    from peft.tuners.lora import LoraLayer

    wrong = [
        name for name, layer in adapted.named_modules() if isinstance(layer, LoraLayer) and not _merge_layer(layer)
    ]
    if wrong:
        raise RuntimeError(
            f"merging the adapter changed weights by more than the rounding of their dtype at {', '.join(wrong[:3])}"
        )
    return adapted.base_model.unload()


def names_in_file(adapted: Any) -> dict[str, str]:
    """Parameter of an adapter -> its name in adapter_model.safetensors."""
    from peft import get_peft_model_state_dict

    own = {id(parameter): name for name, parameter in adapted.named_parameters()}
    given = dict(adapted.named_parameters())
    saved = get_peft_model_state_dict(adapted, state_dict=given, save_embedding_layers=False)
    return {own[id(tensor)]: name for name, tensor in saved.items()}


def _merge_layer(layer: Any) -> bool:
    """Whether the merged weight is the exact sum, rounded."""
    exact = _exact_sum(layer)
    layer.merge(safe_merge=False)
    weight: Tensor = layer.get_base_layer().weight
    if exact is None:
        return True
    limits = torch.finfo(weight.dtype)
    rounding = exact.abs() * (limits.eps + 1e-5) + 1e-6 * exact.abs().max() + limits.tiny  # also of float32 sums
    return bool(((weight.float() - exact).abs() <= rounding).all())


def _exact_sum(layer: Any) -> Tensor | None:
    """Base weight and low-rank update in float32; None for variants (such as DoRA) whose update is not a plain sum."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant for name in active) or not active:
        return None
    exact: Tensor = layer.get_base_layer().weight.float().clone()
    for name in active:
        delta = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
        exact += delta.T if layer.fan_in_fan_out else delta
    return exact
