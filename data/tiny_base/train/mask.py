"""Attention masks of packed questions, and masks that apply to the first decoder layers only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .samples import PackedQuestions


def attention_masks(packed: PackedQuestions, image: int) -> tuple[Tensor, Tensor]:
    """[B, 1, L, L] True where a position may attend; and the same, but text does not attend to the image. image: the
    id of image tokens."""
    query, key = packed.group.unsqueeze(2), packed.group.unsqueeze(1)
    length = packed.ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_group = (key == 0) | (query == key) if packed.independent else key <= query
    without_image = causal & same_group & ~((query > 0) & (packed.ids == image).unsqueeze(1))
    return (causal & same_group).unsqueeze(1), without_image.unsqueeze(1)


def additive(mask: Tensor) -> Tensor:
    """The mask as a term added to attention scores: 0 where it is True, the smallest float32 elsewhere."""
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


@contextmanager
def mask_first_layers(layers: Any, count: int, mask: Tensor) -> Iterator[None]:
    """Within this context the first `count` decoder `layers` use `mask` in place of their own."""

    def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers[:count]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
