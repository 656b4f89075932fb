"""The load balancing loss of mixture-of-experts models, over the tokens that each layer ran on.

transformers computes it after the decoder, by a function of the modeling file, of the router logits of all layers and
one mask for all of them. In a reduced forward layers >= K route the kept tokens alone. From the decoder's end to the
model's end the function is replaced: it is given all layers' logits as those of one long layer with a mask of its own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.structure import ModelParts
from .forward_state import ForwardState
from .transformers_compat import ROUTER_LOSS, router_type


class RouterLoss:
    """Of one model. Nothing is replaced outside of a reduced forward that returns router logits."""

    def __init__(self, parts: ModelParts) -> None:
        self.namespace: dict[str, Any] = inspect.unwrap(type(parts.top).forward).__globals__
        router = router_type(parts.text)
        counts = [sum(isinstance(m, router) for m in layer.modules()) if router else 0 for layer in parts.layers]
        self.layers = [number for number, count in enumerate(counts) for _ in range(count)]
        self.original: Any = None

    def replace(self, state: ForwardState | None, starts: Sequence[int], with_teacher: bool) -> None:
        """state: None where nothing was reduced; starts: K of each stage; with_teacher: layers from the first K on ran
        for it, too, each before the student's."""
        if self.original is not None or ROUTER_LOSS not in self.namespace:
            return
        self.original, thread = self.namespace[ROUTER_LOSS], threading.get_ident()
        original = self.original

        def loss(gate_logits: Any, num_experts: Any = None, top_k: Any = 2, attention_mask: Any = None) -> Any:
            if threading.get_ident() != thread or not isinstance(gate_logits, tuple):
                return original(gate_logits, num_experts, top_k, attention_mask)
            own = self._of_student(gate_logits, starts[0]) if with_teacher else gate_logits
            if state is None:
                return original(own, num_experts, top_k, attention_mask)
            masks = [self._mask(state, starts, number) for number in range(len(own))]
            together = torch.cat([logits.flatten(0, -2).to(own[0].device) for logits in own])
            mask = torch.cat([mask.flatten().to(together.device) for mask in masks])
            return original((together,), num_experts, top_k, mask[None])

        self.namespace[ROUTER_LOSS] = loss

    def restore(self) -> None:
        if self.original is not None:
            self.namespace[ROUTER_LOSS], self.original = self.original, None

    def _of_student(self, gate_logits: tuple[Tensor, ...], first: int) -> tuple[Tensor, ...]:
        before = sum(layer < first for layer in self.layers)
        return (*gate_logits[:before], *gate_logits[before + 1 :: 2])

    def _mask(self, state: ForwardState, starts: Sequence[int], number: int) -> Tensor:
        """[B, tokens] long: the real tokens of one layer; of the prompt's mask where nothing was dropped yet."""
        stage = sum(start <= self.layers[number] for start in starts) - 1
        if stage >= 0:
            return state.stages[stage].kept.valid.long()
        real = state.plan.real
        assert real is not None
        return real.long()
