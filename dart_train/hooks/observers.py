"""What a selection needs from the forward, recorded where it is computed.

- Keys and values of one layer as its cache would get them, and one row of its attention, without switching the kernel.
  A hook on `k_proj` would see other numbers (no rotary embedding, no key norm) and select other tokens.
- The weight of the final RMSNorm: similarity is measured under it, and leaving it out selects other tokens.
- The time that selections take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..common.deepspeed_compat import gathered, is_partitioned, weight_without_gathering
from .transformers_compat import attention_kernel

ROW_OBSERVER = "dart_train_row_observer"


class RecordingCache:
    """Replaces the cache of one attention call: records what it is given, and passes the call on.

    Where the forward has no cache, keys and values are returned as they came, and every other method (that of an
    indexer, or of a convolution's state) is one of a cache that is thrown away.
    """

    def __init__(self, cache: Any, record: Callable[[Tensor, Tensor], None], config: Any = None) -> None:
        self._cache, self._record, self._config = cache, record, config

    def update(self, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self._record(key, value)
        return (key, value) if self._cache is None else self._cache.update(key, value, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if self._cache is not None:
            return getattr(self._cache, name)
        if "_thrown_away" not in vars(self):
            self._thrown_away = DynamicCache(config=self._config)
        return getattr(self._thrown_away, name)


class RecordingAttentionConfig:
    """Replaces the config of one attention module, so that its next call comes to `_observed_attention`."""

    def __init__(self, config: Any, record: Callable[..., None]) -> None:
        self.original, self.record = config, record
        self._attn_implementation = ROW_OBSERVER

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def _observed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """Record query and key, then run the kernel that the model was configured with."""
    observer: Any = module.config
    module.config = observer.original
    observer.record(module, query, key, kwargs.get("scaling"), kwargs.get("softcap"))
    return attention_kernel(module, observer.original)(module, query, key, value, mask, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(ROW_OBSERVER, _observed_attention)


def remove_observer(module: Any, args: Any, output: Any) -> None:
    """An attention that raised before its kernel still holds the observer."""
    if isinstance(getattr(module, "config", None), RecordingAttentionConfig):
        module.config = module.config.original


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
    """query [B, Hq, L, d], key [B, Hkv, P + L, d] with P cached tokens before; rows (the sequence of each of R groups),
    last [R]; real [R, L] (the tokens of each group's own sample) -> [R, L]: the attention of each group's last prompt
    token to each place, mean over heads, in float32, under autocast too: a training must choose as serving does.
    Sample by sample: all keys at once would be copied, and the copy would cost more than the products."""
    device = query.device.type  # "meta", where launches are counted, has no autocast
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        return _attention_row(query, key, rows, last, real, scaling, softcap, window)


def _attention_row(
    query: Tensor,
    key: Tensor,
    rows: Sequence[int],
    last: Tensor,
    real: Tensor,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    past, length = key.shape[2] - query.shape[2], query.shape[2]
    of = torch.tensor(rows).to(key.device, non_blocking=True)
    q = query[of, :, last].float().unflatten(1, (key.shape[1], -1))  # [R, Hkv, G, d]
    pairs = zip(q.unbind(), rows, strict=True)
    scores = torch.stack([one @ key[row].float().transpose(-1, -2) for one, row in pairs])  # [R, Hkv, G, P + L]
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    place = torch.arange(-past, length, device=key.device)
    visible = (place <= last[:, None]) & torch.cat([real.new_ones(len(rows), past), real], 1)
    if window is not None:
        visible &= place > last[:, None] - window
    scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    return scores.softmax(-1).mean((1, 2))[:, past:]


class FinalNormWeight:
    """Read where it is whenever it can be. Under ZeRO-3 it is partitioned: then a copy is used, which every forward of
    the norm renews (calling the norm from another module's hook would hang as soon as one rank has no image), and
    which `refresh` gathers for a first step that must not differ from an uninterrupted run.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.copy: Tensor | None = None
        self.refresh()

    def read(self) -> Tensor | None:
        """[D] float32, or None for a norm without a weight."""
        weight = weight_without_gathering(self.norm)
        if weight is None:
            return None
        if not is_partitioned(weight):
            return _scale(self.norm)
        if self.copy is None:
            raise RuntimeError("the final norm's weight is partitioned and was never gathered: call refresh()")
        return self.copy

    def on_forward(self, norm: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the norm: here ZeRO-3 has gathered its weight."""
        if is_partitioned(norm.weight):
            self.copy = _scale(norm)

    def refresh(self) -> None:
        """Collective under ZeRO-3: call it on every rank."""
        weight = getattr(self.norm, "weight", None)
        if isinstance(weight, Tensor) and is_partitioned(weight):
            with gathered(weight):
                self.copy = _scale(self.norm)


@torch.no_grad()
def _scale(norm: Any) -> Tensor:
    """[D] float32: what the norm multiplies by, computed by the norm itself, so that Gemma's 1 + weight needs no
    special case: ones have an RMS of one. (The class's forward, so that no hook runs.)"""
    weight = norm.weight
    ones = torch.ones(1, weight.shape[0], dtype=torch.float32, device=weight.device)
    scale: Tensor = type(norm).forward(norm, ones)[0].float()
    return scale


class SelectionTimer:
    """Off by default. On a GPU it records events, so that nothing waits for the device before `read`; what the host
    does ahead of the device then costs nothing, and is not counted."""

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
        seconds, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        for begin, end in events:
            end.synchronize()
            seconds += begin.elapsed_time(end) / 1e3
        return seconds
