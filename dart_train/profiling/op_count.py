"""Every operation of a workload counted: its FLOPs, the bytes it reads and writes, and the least time of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .device import DevicePeak
from .timing import Workload

# Operations that allocate and write nothing.
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_efficientzerotensor"}


@dataclass(frozen=True)
class OpCount:
    """seconds: the operations one after the other, each at the slower of the device's two peaks (FLOPs, bytes)."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: OpCount) -> OpCount:
        return OpCount(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)

    def __sub__(self, other: OpCount) -> OpCount:
        return self + other * -1

    def __mul__(self, times: float) -> OpCount:
        return OpCount(self.flops * times, self.bytes * times, self.seconds * times)


def count_ops(workload: Workload, peak: DevicePeak) -> OpCount:
    with _CountingMode(peak) as counting:
        workload()
    return counting.total


class _CountingMode(TorchDispatchMode):
    def __init__(self, peak: DevicePeak) -> None:
        super().__init__()
        self.peak, self.total = peak, OpCount()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _returns_view(func) and func._schema.name.removeprefix("aten::") not in _ALLOCATIONS:
            flops, size = _flops(func, args, kwargs or {}, out), _bytes((args, kwargs, out))
            self.total += OpCount(flops, size, max(flops / self.peak.flops, size / self.peak.bytes))
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    name = func._schema.name
    if "scaled_dot_product" in name:
        return _attention_flops(name, func._schema, args, kwargs)
    count = flop_registry.get(func._overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0


def _attention_flops(name: str, schema: Any, args: Any, kwargs: Any) -> float:
    """Operations of attention; of causal attention the half that such a kernel computes."""
    given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    shapes = [given[part].shape for part in ("query", "key", "value")]
    if "backward" in name:
        gradient = given.get("grad_out", given.get("grad_out_"))
        total = sdpa_backward_flop_count(shapes[0] if gradient is None else gradient.shape, *shapes)
    else:
        total = sdpa_flop_count(*shapes)
    square = shapes[0][-2] == shapes[1][-2]
    return total * (0.5 if given.get("is_causal") and square else 1.0)


def _returns_view(func: Any) -> bool:
    """No data moves: the output shares the input's memory."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _bytes(values: Any) -> int:
    """Bytes of all tensors, each part of a storage once."""
    distinct = {(t.untyped_storage()._cdata, t.storage_offset(), t.numel()): t for t in tensors_in(values)}
    return sum(_stored_elements(t) * t.element_size() for t in distinct.values())


def _stored_elements(tensor: Tensor) -> int:
    """Elements in memory: an expanded axis (stride 0) holds one."""
    return int(torch.tensor([n if step else 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True)]).prod())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
