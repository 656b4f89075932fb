"""The reduced forward computed differently: full length, with dropped tokens hidden by the mask from layers >= K.

Nothing is gathered, no cache is used and no position moves, so that an error of the engine shows as a difference.
Slow, for checks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models.structure import ModelParts, find_parts

MASKED_KERNELS = ("sdpa", "eager")  # the others take no 4-D mask
Stage = tuple[int, Tensor]  # layer K, and what is kept from there on: [B, L] bool


def masked_logits(model: Any, inputs: Mapping[str, Any], stages: Sequence[Stage]) -> Tensor:
    """[B, L, V]: logits of the full-length forward; right at kept positions, garbage at dropped ones."""
    parts = find_parts(model)
    with _hidden_columns(parts, stages):
        return plain_logits(model, inputs)


def plain_logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, L, V]: of the model as it is, with positions counted from the mask: left padding must not move the
    rotary embeddings, which some families handle themselves."""
    positions = {} if find_parts(model).family.own_positions else _positions(inputs)
    return model(**inputs, **positions, use_cache=False).logits


def _positions(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    mask = inputs.get("attention_mask")
    if mask is None or inputs.get("position_ids") is not None:
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}


@contextmanager
def _hidden_columns(parts: ModelParts, stages: Sequence[Stage]) -> Iterator[None]:
    kernel = parts.text_config._attn_implementation
    if kernel not in MASKED_KERNELS:
        raise NotImplementedError(f"attention {kernel!r} takes no mask of single tokens; use sdpa or eager")
    handles = []
    try:
        for layer, module in enumerate(parts.layers):
            stays = [keep for first, keep in stages if first <= layer]
            if stays:
                handles.append(module.register_forward_pre_hook(_hiding(stays[-1]), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hiding(keep: Tensor) -> Callable[..., Any]:
    def before_layer(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": hide(kwargs.get("attention_mask"), keep)}

    return before_layer


def hide(mask: Tensor | None, keep: Tensor) -> Tensor:
    """mask [B or 1, 1, L, L], bool or additive (None: causal), keep [B, L] -> the mask with the columns of
    dropped tokens closed. A dropped token still attends to itself, so that no row is empty; its output is unused."""
    length = keep.shape[1]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()[None, None]
    dropped = ~keep[:, None, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=keep.device) & dropped
    if mask.dtype == torch.bool:
        return (mask & ~dropped) | itself
    return mask.masked_fill(dropped, torch.finfo(mask.dtype).min).masked_fill(itself, 0.0)
