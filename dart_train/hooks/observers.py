"""What the choice of tokens takes, noted where it happens and read when somebody asks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Seeing what the attention of one layer computes: keys and values as its cache would get them, and one row of
# attention, without switching the kernel.
#
# A hook on `k_proj` would see other numbers (no rotary embedding, no key norm) and choose other tokens.

ROW_OBSERVER = "dart_train_row_tap"


class RecordingCache:
    """Stands in for the cache of one attention call: shows what it is given, and passes the call on."""

    def __init__(self, cache: Any, sink: Callable[[Tensor, Tensor], None]) -> None:
        self._cache, self._sink = cache, sink

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._sink(key, value)
        return (key, value) if self._cache is None else self._cache.update(key, value, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if self._cache is None:
            raise AttributeError(name)
        return getattr(self._cache, name)


class RecordingAttentionConfig:
    """Stands in for the config of one attention module, so that its next call comes to `_row_attention`."""

    def __init__(self, config: Any, sink: Callable[..., None]) -> None:
        self.original, self.sink = config, sink
        self._attn_implementation = ROW_OBSERVER

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _row_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Show query and key, then run the very kernel that the model was configured with."""
    tap: Any = module.config
    module.config = tap.original
    tap.sink(module, query, key, kwargs.get("scaling"), kwargs.get("softcap"))
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(tap.original._attn_implementation, eager)
    return kernel(module, query, key, value, mask, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(ROW_OBSERVER, _row_attention)


@torch.no_grad()
def attention_row(
    query: Tensor,
    key: Tensor,
    rows: Sequence[int],
    last: Tensor,
    real: Tensor,
    scaling: float | None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """query [B, Hq, L, d], key [B, Hkv, P + L, d] with P cached tokens before; rows (the sample of each of R pools),
    last [R]; real [B, L] -> [R, L]: what each pool's last prompt token pays to each place, mean over heads, in
    float32. Sample by sample: all keys at once would be copied, and the copy would cost more than the products."""
    past, length = key.shape[2] - query.shape[2], query.shape[2]
    of = torch.tensor(rows).to(key.device, non_blocking=True)
    q = query[of, :, last].float().unflatten(1, (key.shape[1], -1))  # [R, Hkv, G, d]
    pairs = zip(q.unbind(), rows, strict=True)
    scores = torch.stack([one @ key[row].float().transpose(-1, -2) for one, row in pairs])  # [R, Hkv, G, P + L]
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    place = torch.arange(-past, length, device=key.device)
    seen = (place <= last[:, None]) & torch.cat([real.new_ones(len(rows), past), real[of]], 1)
    if window is not None:
        seen &= place > last[:, None] - window
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    return scores.softmax(-1).mean((1, 2))[:, past:]


# The weight of the final RMSNorm: similarity is measured under it, and leaving it out chooses other tokens.


class FinalNormWeight:
    """Read where it lies whenever it can be. Under ZeRO-3 it is partitioned: then a copy is used, which every
    forward of the norm renews (calling the norm from another module's hook would hang as soon as one rank
    has no image), and which `refresh` gathers for a first step that must not differ from an uninterrupted run.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.copy: Tensor | None = None
        self.refresh()

    def read(self) -> Tensor | None:
        # Out of the dictionary: during a forward ZeRO-3 gathers what is asked for as an attribute, on this rank alone.
        weight = dict.get(self.norm._parameters, "weight")
        if weight is None:
            return None
        if not hasattr(weight, "ds_id"):
            return _scale(self.norm)
        if self.copy is None:
            raise RuntimeError("the final norm's weight is partitioned and was never gathered: call refresh()")
        return self.copy

    def seen(self, norm: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the norm: here ZeRO-3 has its weight whole."""
        if hasattr(norm.weight, "ds_id"):
            self.copy = _scale(norm)

    def refresh(self) -> None:
        """Collective under ZeRO-3: call it on every rank."""
        weight = getattr(self.norm, "weight", None)
        if weight is None or not hasattr(weight, "ds_id"):
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            self.copy = _scale(self.norm)


@torch.no_grad()
def _scale(norm: Any) -> Tensor:
    """[D] float32: what the norm multiplies by, asked of the norm itself, so that Gemma's 1 + weight needs no
    knowledge: ones have an RMS of one. (The class's forward, so that no hook runs.)"""
    weight = norm.weight
    ones = torch.ones(1, weight.shape[0], dtype=torch.float32, device=weight.device)
    scale: Tensor = type(norm).forward(norm, ones)[0].float()
    return scale


class SelectionTimer:
    """Off until it is wanted. On a GPU events go along with the work, so that nothing waits for it before `read`;
    what the host does ahead of the device then costs nothing, and is not counted."""

    def __init__(self) -> None:
        self.on = False
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        if not self.on:
            yield
        elif device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begun

    def read(self) -> float:
        """Seconds since the last reading. Waits for a GPU."""
        found, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        for begin, end in events:
            end.synchronize()
            found += begin.elapsed_time(end) / 1e3
        return found
