"""Two budgets in one forward: a student and, without gradient, its teacher.

What runs before layer K (vision tower, embedding, layers < K) does not depend on a budget and runs once. From layer K
on, each layer runs for the teacher first, in evaluation mode and without gradient, and then for the student. There is
one forward with one order of layers: ZeRO-3 sees the same trace in every step and on every rank, with or without
images, and gathers a layer once for both. Two forwards in a row would restart its trace in the middle of a step.

A teacher may have a reduction of its own, at a layer after K: until there its layers run at full length.

Where dropout is active before layer K (adapters on the first layers, say), the teacher shares what was dropped there:
it is the same forward. From layer K on nothing is dropped for the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..common.distributed import kept_gathered
from ..reduction import Reducer
from ..reduction.batch_layout import Per
from .forward_state import ForwardState
from .transformers_compat import SHARED_KEYS, cache_of


class ReductionPass:
    """One budget: its reducers, and the state of the forward that is running (None: it runs as the plain model)."""

    def __init__(self, reducers: Sequence[Reducer]) -> None:
        self.reducers = tuple(reducers)
        self.state: ForwardState | None = None


class TeacherPass(ReductionPass):
    """`reducers`: the student's stages at the teacher's budgets. observed_layer and per: of a teacher whose one stage
    is its own, the layer whose keys it selects by, and its groups."""

    def __init__(self, reducers: Sequence[Reducer], observed_layer: int | None = None, per: Per | None = None) -> None:
        super().__init__(reducers)
        self.observed_layer, self.per = observed_layer, per
        self.running = False  # a layer, for the teacher
        self.hidden: Tensor | None = None  # [B, its own length, D]; None before layer K
        self.shared_keys: Any = None  # of earlier layers, for those that use them

    @property
    def has_own_stage(self) -> bool:
        return self.per is not None

    def start(self) -> None:
        """Before a forward."""
        self.state, self.hidden, self.shared_keys = None, None, None

    def run_layer(self, student: ForwardState | None, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Before a layer >= K runs for the student; args and kwargs are of full length."""
        if cache_of(kwargs) is not None:
            raise ValueError("a second budget in the same forward would fill its cache twice: give use_cache=False")
        if args[0].ndim != 3:
            raise NotImplementedError(
                "a second budget in the same forward: this decoder joins several streams of hidden states after its "
                "last layer, which would have to happen twice; run two forwards instead"
            )
        if self.hidden is None:
            self.hidden = args[0].detach()
            self.state = None if student is None else student.copy_for_teacher(self.per)
            self.shared_keys = copy.copy(kwargs.get(SHARED_KEYS))
        if self.shared_keys is not None:
            kwargs = {**kwargs, SHARED_KEYS: self.shared_keys}
        self.running = True
        try:
            with torch.no_grad(), own_autocast_cache(), evaluation_mode(layer), kept_gathered(layer):
                output = layer(self.hidden, *args[1:], **kwargs)
        finally:
            self.running = False
        self.hidden = output[0] if isinstance(output, tuple) else output

    def final_states(self, norm: nn.Module) -> Tensor:
        """The decoder's output for the teacher. Every rank calls the norm here, as ZeRO-3 needs it."""
        assert self.hidden is not None
        with torch.no_grad(), own_autocast_cache():
            states: Tensor = norm(self.hidden)
        return states


def own_stage_of(current: ReductionPass) -> TeacherPass | None:
    """The pass, if it is that of a teacher with a stage of its own."""
    return current if isinstance(current, TeacherPass) and current.has_own_stage else None


@contextmanager
def own_autocast_cache() -> Iterator[None]:
    """Autocast caches the weights that it casts. Cast without gradient here, older torch hands them to the
    student, where they get no gradient (2.13 does not)."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def evaluation_mode(layer: nn.Module) -> Iterator[None]:
    training = [module for module in layer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def append_teacher(student: Tensor, teacher: Tensor) -> Tensor:
    """[B, S, D] twice -> [2 B, S, D], so that the head runs once."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"two budgets in one forward leave {tuple(student.shape[:2])} and {tuple(teacher.shape[:2])} states, which "
            "one head cannot take together. Supervise no visual tokens, or attach with output='expand'."
        )
    return torch.cat([student, teacher])
