"""Every operation of a piece of work counted: its FLOPs, the bytes it reads and writes, and the least time of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .timing import Job, synchronize

_SIDE = {"float32": 2048, "bfloat16": 8192, "float16": 8192}  # of the matrices that show a device's peak
_BYTES = 1 << 28
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_efficientzerotensor"}


@dataclass(frozen=True)
class Peak:
    """What this device was seen to do at best: FLOPs and bytes a second."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Work:
    """seconds: each operation at the slower of its two peaks, one after the other."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.seconds + other.seconds)

    def __sub__(self, other: Work) -> Work:
        return self + other * -1

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times, self.seconds * times)


class Counting(TorchDispatchMode):
    """`with Counting(peak) as counted: ...`, then `counted.work`."""

    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self.peak, self.work = peak, Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not _view(func) and func._schema.name.removeprefix("aten::") not in _FREE:
            flops, size = flops_of(func, args, kwargs or {}, out), _size((args, kwargs, out))
            self.work += Work(flops, size, max(flops / self.peak.flops, size / self.peak.bytes))
        return out


def counted(job: Job, peak: Peak) -> Work:
    with Counting(peak) as counting:
        job()
    return counting.work


def flops_of(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Of attention that looks back only, the half that such a kernel computes."""
    name = func._schema.name
    if "scaled_dot_product" in name:
        return _attention(name, func._schema, args, kwargs)
    count = flop_registry.get(func._overloadpacket)
    return float(count(*args, **kwargs, out_val=out)) if count is not None else 0.0


def _attention(name: str, schema: Any, args: Any, kwargs: Any) -> float:
    given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
    shapes = [given[part].shape for part in ("query", "key", "value")]
    if "backward" in name:
        gradient = given.get("grad_out", given.get("grad_out_"))
        whole = sdpa_backward_flop_count(shapes[0] if gradient is None else gradient.shape, *shapes)
    else:
        whole = sdpa_flop_count(*shapes)
    square = shapes[0][-2] == shapes[1][-2]
    return whole * (0.5 if given.get("is_causal") and square else 1.0)


def _view(func: Any) -> bool:
    """Nothing is moved: the output is the input, seen otherwise."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _size(values: Any) -> int:
    """Bytes of all tensors, each storage's part once."""
    seen = {(t.untyped_storage()._cdata, t.storage_offset(), t.numel()): t for t in _tensors(values)}
    return sum(_distinct(t) * t.element_size() for t in seen.values())


def _distinct(tensor: Tensor) -> int:
    """Numbers that lie there: along an expanded axis it is one."""
    return int(torch.tensor([n if step else 1 for n, step in zip(tensor.shape, tensor.stride(), strict=True)]).prod())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The best of several goes at one large product, and at one large copy."""
    side = _SIDE[str(dtype).removeprefix("torch.")] if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(_BYTES // 4, device=device)
    target = torch.empty_like(source)
    product, copy = _best(lambda: a @ b, device), _best(lambda: target.copy_(source), device)
    return Peak(2 * side**3 / product, 2 * _BYTES / copy)


def _best(job: Job, device: torch.device) -> float:
    from .timing import once

    synchronize(device)
    return min(once(job, device) for _ in range(8))
