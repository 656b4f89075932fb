"""What is private in DeepSpeed and used outside training. Read in deepspeed 0.19.8:

- a parameter that ZeRO manages has `ds_id`, and its complete size is `ds_numel`, its complete shape `ds_shape`; under
  ZeRO-3 a module's `__getattr__` gathers it during a forward, on this rank alone;
- `deepspeed.ops.__compatible_ops__` is the table of operators that this machine may compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
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


def complete_size(parameter: Any) -> int:
    """Number of elements, also of a partitioned parameter."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def complete_shape(parameter: Any) -> torch.Size:
    """Also of a partitioned parameter."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def init_deepspeed(backend: str, timeout: timedelta) -> None:
    """Creates the process group. On CPUs DeepSpeed compiles an operator that reduces through shared memory. Only
    inference calls it; training would pay half a minute, a C++ compiler, and 66 MiB a rank of files that no one
    removes."""
    import deepspeed

    operators: Any = deepspeed.ops.__compatible_ops__
    operators["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
