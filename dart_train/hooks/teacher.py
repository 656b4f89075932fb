"""Two budgets in one forward: a teacher beside its student.

What lies before layer K (vision tower, embedding, layers < K) knows no budget and is run once. From layer K on, each
layer runs for the companion first, in evaluation mode and without gradient, and then for the forward itself. One
forward, one order of layers: ZeRO-3 sees the same trace in every step and on every rank, pictures or not, and gathers
a layer once for both; two forwards in a row would begin its trace anew in the middle of a step.

Where dropout is active before layer K (adapters on the first layers, say), the companion shares what it dropped
there: it is the same forward. From layer K on nothing is dropped for the companion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..reduction import Reducer
from .forward_state import ForwardState
from .transformers_compat import cache_of

if TYPE_CHECKING:
    from .engine import Engine


class TeacherPass:
    """`reducers`: its own stages, at the layers of the forward's."""

    def __init__(self, reducers: Sequence[Reducer]) -> None:
        self.reducers = tuple(reducers)
        self.running = False  # a layer, for the companion
        self.begin()

    def begin(self) -> None:
        """Before a forward."""
        self.flight: ForwardState | None = None
        self.hidden: Tensor | None = None  # [B, its own length, D], None before layer K

    def run(self, engine: Engine, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a layer >= K does the forward's own work; args and kwargs are of full length."""
        if cache_of(kwargs) is not None:
            raise ValueError("a second budget in the same forward would fill its cache twice: give use_cache=False")
        if self.hidden is None:
            self.hidden = args[0].detach()
            self.flight = None if engine.flight is None else engine.flight.fork()
        with torch.no_grad(), _casting_for_itself(), self._in_place_of(engine), _evaluating(layer):
            output = layer(self.hidden, *args[1:], **kwargs)
        self.hidden = output[0] if isinstance(output, tuple) else output

    def states(self, norm: nn.Module) -> Tensor:
        """What leaves the decoder for the companion. Every rank calls the norm here, as ZeRO-3 needs it."""
        assert self.hidden is not None
        with torch.no_grad(), _casting_for_itself():
            found: Tensor = norm(self.hidden)
        return found

    @contextmanager
    def _in_place_of(self, engine: Engine) -> Iterator[None]:
        own, engine.flight, engine.reducers = (engine.flight, engine.reducers), self.flight, self.reducers
        self.running = True
        try:
            yield
        finally:
            self.running = False
            engine.flight, engine.reducers = own


@contextmanager
def _casting_for_itself() -> Iterator[None]:
    """Where autocast keeps weights that it cast without gradient, they would learn nothing afterwards."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _evaluating(layer: nn.Module) -> Iterator[None]:
    training = [module for module in layer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def beside(states: Tensor, other: Tensor) -> Tensor:
    """[B, S, D] twice -> [2 B, S, D], the companion's behind: the head runs once."""
    if states.shape != other.shape:
        raise ValueError(
            f"two budgets in one forward leave {tuple(states.shape[:2])} and {tuple(other.shape[:2])} states, which "
            "one head cannot take together. Supervise no visual tokens, or attach with output='expand'."
        )
    return torch.cat([states, other])
