"""Training steps that are timed: the loss at supervised positions, backward, AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..hooks import Attached
from ..profiling.timing import Workload
from ..training.objective import forward_supervised
from .subject import Subject
from .ways import Way

Loss = Callable[[Attached | None, bool], Tensor]


class TrainStep:
    """The optimizer of a subject; weights hardly move, so that every step is like the first."""

    def __init__(self, subject: Subject, model: Any = None) -> None:
        """model: what wraps the subject's, for training on several ranks."""
        self.subject, self.model = subject, subject.model if model is None else model
        weights = [weight for weight in subject.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-9, fused=True)
        if model is None:
            self.learn(self.loss(None, False))  # so that no first step has to make its moments

    def step(self, way: Way) -> Workload:
        return lambda: self.learn(self.loss(way.attached, way.few))

    def learn(self, loss: Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, attached: Attached | None, few: bool) -> Tensor:
        batch, host = self.subject.given(few)
        told = forward_supervised(self.model, attached, batch, host)
        return told.loss() / told.targets.numel()
