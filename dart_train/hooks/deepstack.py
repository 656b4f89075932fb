"""Qwen3-VL adds visual features to the first layers' outputs at full length: they must follow the kept tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .engine import Engine
from .forward_state import ForwardState


def following_deepstack(engine: Engine, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Stands before the decoder's `_deepstack_process`."""

    def process(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        """hidden [B, S, D], visual [B, L] bool, features [all visual tokens of the batch, D]."""
        companion = engine.companion
        if companion is not None and companion.hidden is not None:
            with torch.no_grad():
                companion.hidden = add(companion.flight, companion.hidden, visual, features)
        return add(engine.flight, hidden, visual, features)

    def add(flight: ForwardState | None, hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        if flight is None or flight.decoding or not flight.kept:
            return original(hidden, visual, features)
        kept, visual = flight.kept[-1], visual.to(hidden.device)
        rank = (visual.flatten().long().cumsum(0) - 1).view_as(visual).clamp_min(0)
        rows = features.to(hidden)[kept.gather(rank)]
        here = (kept.gather(visual) & kept.valid)[..., None]
        return hidden + rows.masked_fill(~here, 0)

    return process


def patch_deepstack(engine: Engine) -> dict[str, Any]:
    text = engine.parts.text
    if not hasattr(text, "_deepstack_process"):
        return {}
    return {"_deepstack_process": following_deepstack(engine, text._deepstack_process)}
