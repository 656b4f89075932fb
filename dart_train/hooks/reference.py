"""The reduced forward computed differently: full length, with dropped tokens hidden by the mask from layers >= K.

Nothing is gathered, no cache is used and no position moves, so that an error of the engine shows as a difference.
Where a layer >= K has a recurrent state, which runs over dropped tokens too, the layers run on the kept tokens of one
row after the other instead, without any padding. Slow, for checks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models.structure import ModelParts, find_parts
from .masks import MASKED_KERNELS

Stage = tuple[int, Tensor]  # layer K, and what is kept from there on: [B, L] bool


def masked_logits(model: Any, inputs: Mapping[str, Any], stages: Sequence[Stage]) -> Tensor:
    """[B, L, V]: logits of the full-length forward; right at kept positions, garbage at dropped ones."""
    parts = find_parts(model)
    if any(parts.is_recurrent(layer) for layer in range(stages[0][0], len(parts.layers))):
        return _row_by_row(model, parts, inputs, stages)
    with _hidden_columns(parts, stages):
        return plain_logits(model, inputs)


def plain_logits(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, L, V]: of the model as it is, with positions counted from the mask: left padding must not move the
    rotary embeddings, which some families handle themselves."""
    positions = {} if find_parts(model).own_positions else _positions(inputs)
    return model(**inputs, **positions, use_cache=False).logits


def _positions(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    mask = inputs.get("attention_mask")
    if mask is None or inputs.get("position_ids") is not None:
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp_min(0)}


@contextmanager
def _hidden_columns(parts: ModelParts, stages: Sequence[Stage]) -> Iterator[None]:
    _check_kernel(parts)
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


def _check_kernel(parts: ModelParts) -> str:
    kernel = str(parts.text_config._attn_implementation)
    if kernel not in MASKED_KERNELS:
        raise NotImplementedError(f"attention {kernel!r} takes no mask of single tokens; use sdpa or eager")
    return kernel


def _row_by_row(model: Any, parts: ModelParts, inputs: Mapping[str, Any], stages: Sequence[Stage]) -> Tensor:
    """[B, L, V], zero at dropped positions. The inputs of layers >= K are recorded in a plain forward."""
    calls: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def recording(layer: int) -> Callable[..., None]:
        return lambda module, args, kwargs: calls.update({layer: (args[0], kwargs)})

    eager, first = _check_kernel(parts) == "eager", stages[0][0]
    handles = [
        module.register_forward_pre_hook(recording(layer), with_kwargs=True)
        for layer, module in enumerate(parts.layers)
    ]
    try:
        logits = torch.zeros_like(plain_logits(model, inputs))
    finally:
        for handle in handles:
            handle.remove()
    for row in range(len(logits)):
        hidden, present = calls[first][0][row : row + 1], torch.arange(logits.shape[1], device=logits.device)
        for layer in range(first, len(parts.layers)):
            for keep in (keep for start, keep in stages if start == layer):
                stays = keep[row, present]
                hidden, present = hidden[:, stays], present[stays]
            mask = _causal(len(present), hidden) if eager and not parts.is_recurrent(layer) else None
            output = parts.layers[layer](hidden, **_options_at(calls[layer][1], row, present, mask))
            hidden = output[0] if isinstance(output, tuple) else output
        logits[row, present] = parts.top.lm_head(parts.norm(hidden))[0].to(logits)
    return logits


def _causal(length: int, like: Tensor) -> Tensor:
    """[1, 1, length, length] additive."""
    return torch.full((length, length), torch.finfo(like.dtype).min).to(like).triu(1)[None, None]


def _options_at(options: dict[str, Any], row: int, places: Tensor, mask: Tensor | None) -> dict[str, Any]:
    rotary = options.get("position_embeddings")
    if rotary is not None:
        rotary = tuple(x[row if len(x) > 1 else 0, places][None] for x in rotary)
    return {**options, "attention_mask": mask, "position_ids": None, "position_embeddings": rotary}


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
