"""First layers in which text does not look at the picture, for as long as a lesson lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def masked(layers: Any, count: int, mask: Tensor) -> Iterator[None]:
    """The first `count` of the decoder `layers` use `mask` in place of their own."""

    def replace(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": mask}

    handles = [layer.register_forward_pre_hook(replace, with_kwargs=True) for layer in layers[:count]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
