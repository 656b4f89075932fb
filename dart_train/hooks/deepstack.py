"""Visual features that a decoder adds to the outputs or inputs of later layers, at full length.

Qwen3-VL adds them between layers, in a method of its decoder: that method is replaced, and gathers them like the kept
tokens. Granite 4 Vision adds them to the inputs of later layers inside its decoder's forward: those of layers after K
are taken out of the decoder's arguments, and added to the kept tokens before their layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..reduction.kept_tokens import KeptTokens
from .forward_state import ForwardState
from .teacher import ReductionPass, TeacherPass
from .transformers_compat import DEEPSTACK

FEATURES, VISUAL = "deepstack_features", "vision_mask"  # arguments of the decoder: {layer: [tokens, D]}, [B, L, 1]


def patch_deepstack(
    decoder: nn.Module, student: ReductionPass, current_teacher: Callable[[], TeacherPass | None]
) -> dict[str, Any]:
    """What to set on a decoder with deepstack, for both passes; empty for others."""
    if not hasattr(decoder, DEEPSTACK):
        return {}
    original: Callable[..., Tensor] = getattr(decoder, DEEPSTACK)

    def add(state: ForwardState | None, hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        if state is None or not state.reduced:
            return original(hidden, visual, features)
        return add_to_kept(state.kept, hidden, visual, features)

    def process(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        """hidden [B, S, D], visual [B, L] bool, features [all visual tokens of the batch, D]."""
        teacher = current_teacher()
        if teacher is not None and teacher.hidden is not None:
            with torch.no_grad():
                teacher.hidden = add(teacher.state, teacher.hidden, visual, features)
        return add(student.state, hidden, visual, features)

    return {DEEPSTACK: process}


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
