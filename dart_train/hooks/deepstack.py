"""Qwen3-VL adds visual features to the first layers' outputs at full length: they are gathered like the kept tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .engine import Engine
from .forward_state import ForwardState
from .inline_deepstack import add_to_kept
from .transformers_compat import DEEPSTACK


def patch_deepstack(engine: Engine) -> dict[str, Any]:
    """What to set on the decoder; empty for models without deepstack."""
    text = engine.parts.text
    return {DEEPSTACK: following_deepstack(engine, getattr(text, DEEPSTACK))} if hasattr(text, DEEPSTACK) else {}


def following_deepstack(engine: Engine, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Replaces the decoder's `_deepstack_process`, which runs between layers, for both passes."""

    def process(hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        """hidden [B, S, D], visual [B, L] bool, features [all visual tokens of the batch, D]."""
        teacher = engine.teacher
        if teacher is not None and teacher.hidden is not None:
            with torch.no_grad():
                teacher.hidden = add(teacher.state, teacher.hidden, visual, features)
        return add(engine.student.state, hidden, visual, features)

    def add(state: ForwardState | None, hidden: Tensor, visual: Tensor, features: Tensor) -> Tensor:
        if state is None or not state.reduced:
            return original(hidden, visual, features)
        return add_to_kept(state.kept, hidden, visual, features)

    return process
