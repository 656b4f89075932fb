"""The attention mask that each layer of a reduced forward is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.structure import ModelParts
from .forward_state import ForwardState
from .masks import key_budgets, last_rows, layer_mask, layer_type
from .packed_attention import PackedMask
from .transformers_compat import cache_of


class LayerMasks:
    """Layers of one stage that are given the same mask share the short one."""

    def __init__(self, parts: ModelParts) -> None:
        self.config = parts.text_config
        layers = range(len(parts.layers))
        self.limits_keys = bool(key_budgets(self.config))
        self.full_attention = {n for n in layers if layer_type(self.config, n) == "full_attention"}
        self.recurrent = {n for n in layers if parts.is_recurrent(n)}
        self.sharing_keys = {n for n in layers if parts.key_source(n) != n}

    def keep_as_given(self, layer: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> bool:
        """In decoding: the layer has no attention; or one new token [1, 1, D] of one row sees its entire cache, and the
        model gives no mask."""
        if layer in self.recurrent:
            return True
        if layer not in self.full_attention or kwargs.get("attention_mask") is not None:
            return False
        return hidden.shape[:2] == (1, 1) and not self.limits_keys

    def make(self, state: ForwardState, stage: int, layer: int, hidden: Tensor, kwargs: Mapping[str, Any]) -> Any:
        """A layer that shares the keys of an earlier one shares its mask, too: the cache of these keys has grown
        since."""
        given, rows = kwargs.get("attention_mask"), None
        if isinstance(given, PackedMask):
            given, rows = given.mask, state.rows_of(stage)
        kind = layer_type(self.config, layer)
        key, latest = (stage, kind, id(given)), ("latest mask", stage, kind)
        if layer not in self.sharing_keys:
            if key not in state.memo:
                state.memo[key] = (given, layer_mask(state, stage, given, cache_of(kwargs), hidden, self.config, layer))
            state.memo[latest] = state.memo[key]
        mask = last_rows(state.memo[latest][1], hidden.shape[1])
        return mask if rows is None else PackedMask(mask, rows)
