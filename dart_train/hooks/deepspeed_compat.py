"""ZeRO-3's partitioned parameters. Read in deepspeed 0.19.8: a parameter that DeepSpeed manages has `ds_id`, and a
module's `__getattr__` gathers it during a forward, on this rank alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def is_partitioned(parameter: Any) -> bool:
    return hasattr(parameter, "ds_id")


def weight_without_gathering(module: nn.Module) -> Tensor | None:
    """`module.weight` from its dictionary, so that ZeRO-3 does not gather it."""
    return dict.get(module._parameters, "weight")


@contextmanager
def gathered(parameter: Tensor) -> Iterator[None]:
    """The full parameter for a while. Collective: every rank must come here."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield
