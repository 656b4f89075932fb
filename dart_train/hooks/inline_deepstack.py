"""Granite 4 Vision adds visual features to the inputs of later layers inside its decoder's forward, at full length.

Those of layers after K are taken out of the decoder's arguments, and added to the kept tokens before their layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..reduction.kept_tokens import KeptTokens

FEATURES, VISUAL = "deepstack_features", "vision_mask"  # arguments of the decoder: {layer: [tokens, D]}, [B, L, 1]


def adds_features_inside(decoder: nn.Module) -> bool:
    return {FEATURES, VISUAL} <= inspect.signature(type(decoder).forward).parameters.keys()


def add_to_kept(kept: KeptTokens, hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
    """hidden [B, S, D], visual [B, L] bool, features [all visual tokens of the batch, D] -> [B, S, D]."""
    visual = visual.to(hidden.device)
    feature_row = (visual.flatten().long().cumsum(0) - 1).view_as(visual).clamp_min(0)
    rows = features.to(hidden)[kept.gather(feature_row)]
    here = (kept.gather(visual) & kept.valid)[..., None]
    return hidden + rows.masked_fill(~here, 0)


class InlineDeepstack:
    """The features of one forward that were taken out."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.features: Mapping[int, Tensor] = {}
        self.visual: Tensor | None = None

    def take(self, kwargs: dict[str, Any], first: int) -> dict[str, Any]:
        """The decoder's arguments without the features of layers after `first`."""
        features = kwargs.get(FEATURES)
        if not features:
            return kwargs
        self.features = {layer: given for layer, given in features.items() if layer > first}
        self.visual = kwargs[VISUAL].flatten(1)
        return {**kwargs, FEATURES: {layer: given for layer, given in features.items() if layer <= first}}

    def add(self, layer: int, kept: KeptTokens | None, hidden: Tensor) -> Tensor:
        """hidden: the input of a layer after K. kept: None before a teacher's own stage."""
        if layer not in self.features or self.visual is None:
            return hidden
        if kept is None:
            return hidden + torch.zeros_like(hidden).index_put((self.visual,), self.features[layer].to(hidden))
        return add_to_kept(kept, hidden, self.visual, self.features[layer])
