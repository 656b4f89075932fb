"""The slow truth: the full-length forward, in which layers >= K cannot see what was dropped.

Written apart from the engine: it hides columns of masks, and gathers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Stage = tuple[int, Tensor]  # layer K, keep [B, L] bool


def hidden_columns(mask: Tensor | None, keep: Tensor) -> Tensor:
    """mask [B, 1, L, L] (bool or additive) or None -> the same with dropped columns hidden; a dropped row sees
    itself alone, to stay finite (nobody reads it)."""
    length = keep.shape[1]
    own = torch.eye(length, dtype=torch.bool)[None, None]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    column = keep[:, None, None, :]
    if mask.dtype == torch.bool:
        return (mask & column) | (own & ~column)
    hidden = mask.masked_fill(~column, torch.finfo(mask.dtype).min)
    return hidden.masked_fill(own & ~column.transpose(-1, -2), 0.0)


def _hook(keep: Tensor, change: Callable[[Tensor], Tensor] | None) -> Callable[..., Any]:
    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if change is None else change(args[0])
        mask = hidden_columns(kwargs["attention_mask"], keep)
        return (hidden, *args[1:]), {**kwargs, "attention_mask": mask}

    return before


def masked_logits(
    model: Any,
    batch: Mapping[str, Tensor],
    stages: Sequence[Stage],
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """[B, L, V]. `change` alters the hidden states at the first stage's layer (for methods that merge)."""
    layers, handles = model.get_decoder().layers, []
    for i, layer in enumerate(layers):
        keep = next((mask for start, mask in reversed(stages) if start <= i), None)
        if keep is not None:
            hook = _hook(keep, change if i == stages[0][0] else None)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    if "position_ids" not in inputs and model.config.model_type[:4] != "qwen":
        inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    try:
        return model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]
    finally:
        for handle in handles:
            handle.remove()


def first_difference(a: Tensor, b: Tensor, where: Tensor) -> float:
    """The largest difference, relative to the size of what is compared."""
    return float(((a - b)[where].abs().max() / b[where].abs().max()).detach())
