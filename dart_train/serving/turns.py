"""Several `generate` calls on one model that take turns, token by token.

`generate` runs a batch from its prompts to its last answer. So that a long answer does not delay the requests after it,
several calls run, each in a thread of its own, and only one of them at a time: between two tokens it lets the next one
go on. What a call leaves on the model for its later tokens is taken away with it and given back with its next turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Loaded
from ..hooks.attachment import RunningGenerate

# Attributes in which models keep something for the next forward; all else is in the cache. `generate` of transformers
# 5.24 makes the positions of new tokens by itself; models that it gives none read this.
KEPT_BY_MODELS = ("rope_deltas",)


class Turns:
    """One thread at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asking: deque[object] = deque()
        self._taken = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """The turn of this thread; waits until it comes."""
        self.take()
        try:
            yield
        finally:
            self.give()

    def take(self) -> None:
        mine = object()
        with self._changed:
            self._asking.append(mine)
            self._changed.wait_for(lambda: not self._taken and self._asking[0] is mine)
            self._asking.popleft()
            self._taken = True

    def give(self) -> None:
        with self._changed:
            self._taken = False
            self._changed.notify_all()

    @property
    def wanted(self) -> bool:
        """Whether another thread waits for its turn."""
        return bool(self._asking)


@dataclass(frozen=True)
class _Suspended:
    reduction: RunningGenerate | None
    kept: list[tuple[nn.Module, str, Any]]
    random: list[Tensor]


class GenerateState:
    """What one call of `generate` has on the model and in torch's generators."""

    def __init__(self, loaded: Loaded) -> None:
        self.attached = loaded.attached
        self._served = None if loaded.attached is None else loaded.attached.reducers
        modules = list(loaded.model.modules())
        self._places = [(module, name) for module in modules for name in KEPT_BY_MODELS if hasattr(module, name)]
        self._devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []

    def suspend(self, draws: bool) -> _Suspended:
        """The model is then as between two requests. draws: the call has a seed of its own."""
        kept = [(module, name, getattr(module, name)) for module, name in self._places]
        random = [] if not draws else [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]
        reduction = None if self.attached is None else self.attached.suspend_generate(self._served)
        return _Suspended(reduction, kept, random)

    def resume(self, before: _Suspended) -> None:
        for module, name, value in before.kept:
            setattr(module, name, value)
        if before.random:
            torch.set_rng_state(before.random[0])
            for device, state in zip(self._devices, before.random[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
        if self.attached is not None and before.reduction is not None:
            self.attached.resume_generate(before.reduction)
