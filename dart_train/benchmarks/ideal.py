"""What arithmetic and memory allow: the cost of this very work if every layer behind the reduction cost what a layer
of that length costs, and the choice of tokens nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.structure import find_parts
from ..profiling.device import DevicePeak
from ..profiling.flops import capture_layer_call, hidden_states
from ..profiling.op_count import OpCount, count_ops
from ..profiling.timing import Workload
from .subject import Subject
from .ways import LAYER


@dataclass(frozen=True)
class Ideal:
    """full: of the whole work at full tokens, counted; layer: of one decoder layer at a length."""

    full: OpCount
    layer: Callable[[int], OpCount]
    depth: int
    length: int

    @classmethod
    def of(cls, subject: Subject, whole: Workload, peak: DevicePeak, training: bool) -> Ideal:
        def layer(length: int) -> OpCount:
            return layer_work(subject, length, peak, training)

        return cls(count_ops(whole, peak), layer, subject.depth, subject.length)

    def at(self, short: int) -> OpCount:
        """With so many tokens from layer K on."""
        behind = self.depth - LAYER
        return self.full + (self.layer(short) - self.layer(self.length)) * behind


def layer_work(subject: Subject, length: int, peak: DevicePeak, training: bool) -> OpCount:
    """One decoder layer: forward, and in training backward, with checkpointing where the model has it on."""
    rows, text = int(subject.host["input_ids"].shape[0]), find_parts(subject.model).text
    weight = next(subject.model.parameters())
    layer, hidden, args, kwargs = capture_layer_call(text, rows, length, False, weight.dtype, weight.device)

    def forward() -> None:
        with torch.no_grad():
            layer(hidden, *args, **kwargs)

    def both() -> None:
        output = hidden_states(layer(hidden, *args, **kwargs))
        output.backward(torch.ones_like(output))
        for tensor in (hidden, *layer.parameters()):
            tensor.grad = None

    if not training:
        return count_ops(forward, peak)
    return count_ops(both, peak)
