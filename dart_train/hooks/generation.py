"""What `generate` is called with, noted for the forwards that it runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reduction import Reducer
from .batch_plan import GenerateCall
from .engine import Engine
from .transformers_compat import cache_of, is_static


@dataclass(frozen=True)
class RunningGenerate:
    """What a call of `generate` that has not ended has set: its prompt, and the budgets that it runs at."""

    call: GenerateCall | None
    reducers: tuple[Reducer, ...]


def record_prompt(engine: Engine, generate: Callable[..., Any]) -> Callable[..., Any]:
    """In generation the prompt alone decides: not the answer so far, not the drafts of assisted decoding."""

    @functools.wraps(generate)
    def generate_with_prompt(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        before = engine.generate_call
        prompt = ids if isinstance(ids, Tensor) and ids.numel() else kwargs.get("inputs_embeds", ids)
        if isinstance(prompt, Tensor) and prompt.ndim in (2, 3):
            engine.generate_call = GenerateCall(prompt.shape[0], prompt.shape[1], kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            engine.generate_call = before

    return generate_with_prompt


def record_mask(engine: Engine, prepare: Callable[..., Any]) -> Callable[..., Any]:
    """For a static cache `generate` replaces the mask [B, length], or None, by those of the layers."""

    @functools.wraps(prepare)
    def prepare_with_mask(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        inputs = prepare(*args, **kwargs)
        known = mask is None or (isinstance(mask, Tensor) and mask.ndim == 2)
        engine.generation_mask = (mask,) if known and is_static(cache_of(inputs)) else None
        return inputs

    return prepare_with_mask
