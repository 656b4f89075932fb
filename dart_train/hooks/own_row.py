"""The attention of layer K itself, for a selection that is made before it runs (`FastV(row="own")`).

Layer K runs on its full input up to its attention kernel, in evaluation mode and without gradient, and stops there.
That costs the projections of one layer, and no attention but one row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.deepspeed_compat import is_partitioned
from .observers import RecordingAttentionConfig
from .teacher import evaluation_mode, own_autocast_cache
from .transformers_compat import cache_argument, cache_of, cached_keys

Record = Callable[..., None]  # module, query, key, scaling, softcap


class _KernelReached(Exception):
    """Ends the layer before its attention kernel runs."""


class _ReadOnlyCache:
    """Shows one attention call the keys that are in the cache, and stores none."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before = cached_keys(self._cache, layer)
        return (key, value) if before is None else (torch.cat([before, key], 2), value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def run_to_kernel(
    layer: nn.Module, attention: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], record: Record | None
) -> None:
    """args, kwargs: what the layer is about to be called with. record None: nothing is wanted of it, but the ranks that
    share its weights gather them together."""

    def stop(*found: Any) -> None:
        if record is not None:
            record(*found)
        raise _KernelReached

    cache, original = cache_of(kwargs), attention.config
    given = {**kwargs, cache_argument(layer.forward): None if cache is None else _ReadOnlyCache(cache)}
    attention.config = RecordingAttentionConfig(original, stop)  # type: ignore[assignment]
    try:
        with torch.no_grad(), own_autocast_cache(), evaluation_mode(layer):
            layer.forward(args[0].detach(), *args[1:], **given)
    except _KernelReached:
        return
    finally:
        attention.config = original
    raise NotImplementedError(
        f"the attention of {type(layer).__name__} does not go through transformers' attention functions, so that its "
        "row is not known before it runs: use row='previous'"
    )


def shares_weights(layer: nn.Module) -> bool:
    """Whether ranks have to gather the weights of this layer together."""
    return any(is_partitioned(weight) for weight in layer.parameters())
