"""What arithmetic and memory allow: the cost of this very work if every layer behind the reduction cost what a layer
of that length costs, and the choice of tokens nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.structure import find_parts
from ..planning.ghost import capture_layer_call, first
from ..profiling.flops import Peak, Work, counted
from ..profiling.timing import Job
from .subject import Subject
from .ways import LAYER


@dataclass(frozen=True)
class Ideal:
    """full: of the whole work at full tokens, counted; layer: of one decoder layer at a length."""

    full: Work
    layer: Callable[[int], Work]
    depth: int
    length: int

    @classmethod
    def of(cls, subject: Subject, whole: Job, peak: Peak, training: bool) -> Ideal:
        def layer(length: int) -> Work:
            return layer_work(subject, length, peak, training)

        return cls(counted(whole, peak), layer, subject.depth, subject.length)

    def at(self, short: int) -> Work:
        """With so many tokens from layer K on."""
        behind = self.depth - LAYER
        return self.full + (self.layer(short) - self.layer(self.length)) * behind


def layer_work(subject: Subject, length: int, peak: Peak, training: bool) -> Work:
    """One decoder layer: forward, and in training backward, with checkpointing where the model has it on."""
    rows, text = int(subject.host["input_ids"].shape[0]), find_parts(subject.model).text
    weight = next(subject.model.parameters())
    layer, hidden, args, kwargs = capture_layer_call(text, rows, length, False, weight.dtype, weight.device)

    def forward() -> None:
        with torch.no_grad():
            layer(hidden, *args, **kwargs)

    def both() -> None:
        output = first(layer(hidden, *args, **kwargs))
        output.backward(torch.ones_like(output))
        for tensor in (hidden, *layer.parameters()):
            tensor.grad = None

    if not training:
        return counted(forward, peak)
    return counted(both, peak)
