"""Trained scorers on a model.

A scorer is a submodule of the model (`dart_scorers.layer_2`), so that optimizers, DeepSpeed, PEFT and checkpoints treat
its weights like all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.structure import SCORERS, ModelParts
from ..reduction import Reducer
from .transformers_compat import dispatches_attention

if TYPE_CHECKING:
    pass


def place_scorers(parts: ModelParts, reducers: Sequence[Reducer]) -> nn.ModuleDict | None:
    """A scorer for each stage that needs one: those already on the model where they fit, else new ones in float32.
    None where no stage needs one."""
    stages = [reducer for reducer in reducers if "scorer" in reducer.required_inputs()]
    if not stages:
        return None
    weight = next(parts.text.parameters())
    present = getattr(parts.top, SCORERS, None) or {}
    found = nn.ModuleDict()
    for stage in stages:
        name = f"layer_{stage.layer}"
        fresh: Any = stage.make_scorer(parts.text_config.hidden_size)
        shapes = {key: tensor.shape for key, tensor in fresh.state_dict().items()}
        if name not in present:
            found[name] = fresh.to(weight.device)
        elif shapes == {key: tensor.shape for key, tensor in present[name].state_dict().items()}:
            found[name] = present[name]
        else:
            raise ValueError(
                f"the scorer of layer {stage.layer} on this model has other weights than {stage!r} expects: attach it "
                "with the options it was trained with"
            )
    return found


def layers_with_rows(parts: ModelParts, start: int) -> list[int]:
    """The layers from `start` on whose rows of attention can be recorded."""
    return [layer for layer in parts.attention_layers(start) if dispatches_attention(parts.attention(layer))]


def check_attention_rows(parts: ModelParts, stages: Iterable[int]) -> None:
    """Raises ValueError where scorers of stages at these layers cannot learn from attention. The model may be on the
    meta device."""
    for stage in stages:
        layers = parts.attention_layers(stage)
        if layers_with_rows(parts, stage):
            continue
        if layers:
            name = type(parts.attention(layers[0])).__name__
            reason = f"{name} does not call its kernel through transformers' attention functions"
        else:
            reason = f"no layer from {stage} on has attention"
        raise ValueError(
            f"the scorer of layer {stage} cannot learn from attention: {reason}, so that its rows are not known. Let "
            "it learn from the task alone: scorer.attention 0, scorer.task 1"
        )


class IdleScorers:
    """While a scorer trains, each rank runs it in each step, with and without images: ZeRO and DDP wait for its weights
    and gradients."""

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts
        self.zeros: list[Tensor] = []  # of a batch without images

    def start(self) -> None:
        """Before a forward."""
        self.zeros = []

    def run(self, scorer: nn.Module | None, hidden: Tensor) -> None:
        """In a forward without images; hidden [B, L, D]."""
        if scorer is None or not torch.is_grad_enabled():
            return
        if any(weight.requires_grad for weight in scorer.parameters()):
            nothing = hidden.detach()[:1, :1]
            self.zeros.append(0.0 * scorer(nothing, nothing[:, 0]).sum())

    def loss(self) -> Tensor:
        """Zero, with a gradient of zero in each weight of the scorers that ran."""
        device = next(self.parts.text.parameters()).device
        return sum(self.zeros, torch.zeros((), device=device))
