"""Training of scorers, as methods of `Attached`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..reduction.budget import Keep
from .engine import Engine
from .forward_state import TaskGradient
from .scorer_targets import ScorerTraining
from .scorers import check_attention_rows


class ScorerMethods:
    """The part of `Attached` that trains the scorers of method `learned`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scorer_training: ScorerTraining | None = None
        self._training_handles: list[Any] = []  # inside with_scorer_loss

    @property
    def scorers(self) -> dict[int, nn.Module]:
        """The trained scorers by the layer of their stage; empty for methods that have none."""
        return dict(self._engine.scorers)

    @contextmanager
    def with_scorer_loss(self, answer_tokens: int = 8, served: Sequence[Keep] = ()) -> Iterator[None]:
        """Inside this context, forwards that keep all tokens (at this model's budget, or at a teacher's) record which
        visual tokens the model attends to; `scorer_loss` then compares the scorers with it. served: a budget of each
        stage, at which `scorer_overlap` compares them."""
        if not self._engine.scorers:
            raise ValueError("no stage has a scorer to train: attach Learned(...)")
        check_attention_rows(self._engine.parts, self._engine.scorers)
        training = ScorerTraining(self._engine, answer_tokens, served)
        before = self._scorer_training, self._training_handles
        self._scorer_training, self._training_handles = training, [*before[1], *(handles := training.register_hooks())]
        try:
            yield
        finally:
            self._scorer_training, self._training_handles = before
            for handle in handles:
                handle.remove()

    def scorer_loss(self) -> Tensor:
        """Of the last forward, inside `with_scorer_loss`: differentiable in the scorers' weights."""
        if self._scorer_training is None:
            raise RuntimeError("scorer_loss() is only known inside with_scorer_loss()")
        return self._scorer_training.loss()

    def scorer_overlap(self) -> Tensor | None:
        """After `scorer_loss`: the share of the tokens with the most attention that are among those of the highest
        scores, at the budget `served`; mean over groups and stages, on the device. None without images."""
        return None if self._scorer_training is None else self._scorer_training.overlap

    @contextmanager
    def with_task_gradient(self, temperature: float, weight: float = 1.0) -> Iterator[None]:
        """Inside this context the loss of a forward has a gradient in the scorers' weights too, `weight` times that of
        a relaxed selection (`reduction/relaxation.py`). What a forward keeps and returns does not change."""
        if not self._engine.scorers:
            raise ValueError("no stage has a scorer to train: attach Learned(...)")
        if not (temperature > 0 and weight >= 0):
            raise ValueError(f"temperature={temperature!r}, weight={weight!r}: expected > 0 and >= 0")
        before, self._engine.task = self._engine.task, TaskGradient(temperature, weight) if weight else None
        try:
            yield
        finally:
            self._engine.task = before

    def idle_scorer_loss(self) -> Tensor:
        """Zero, with a gradient of zero in each scorer weight where the last batch had no image: ZeRO and DDP wait for
        gradients of all weights. `scorer_loss` includes it."""
        return self._engine.idle_scorers.loss()
