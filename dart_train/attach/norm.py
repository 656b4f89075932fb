"""The weight of the final RMSNorm: similarity is measured under it, and leaving it out chooses other tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FinalScale:
    """Read where it lies whenever it can be. Under ZeRO-3 it is partitioned: then a copy is used, which every
    forward of the norm renews (calling the norm from another module's hook would hang as soon as one rank
    has no image), and which `refresh` gathers for a first step that must not differ from an uninterrupted run.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.copy: Tensor | None = None
        self.refresh()

    def read(self) -> Tensor | None:
        # Out of the dictionary: during a forward ZeRO-3 gathers what is asked for as an attribute, on this rank alone.
        weight = dict.get(self.norm._parameters, "weight")
        if weight is None:
            return None
        if not hasattr(weight, "ds_id"):
            return _scale(self.norm)
        if self.copy is None:
            raise RuntimeError("the final norm's weight is partitioned and was never gathered: call refresh()")
        return self.copy

    def seen(self, norm: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the norm: here ZeRO-3 has its weight whole."""
        if hasattr(norm.weight, "ds_id"):
            self.copy = _scale(norm)

    def refresh(self) -> None:
        """Collective under ZeRO-3: call it on every rank."""
        weight = getattr(self.norm, "weight", None)
        if weight is None or not hasattr(weight, "ds_id"):
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([weight]):
            self.copy = _scale(self.norm)


@torch.no_grad()
def _scale(norm: Any) -> Tensor:
    """[D] float32: what the norm multiplies by, asked of the norm itself, so that Gemma's 1 + weight needs no
    knowledge: ones have an RMS of one. (The class's forward, so that no hook runs.)"""
    weight = norm.weight
    ones = torch.ones(1, weight.shape[0], dtype=torch.float32, device=weight.device)
    scale: Tensor = type(norm).forward(norm, ones)[0].float()
    return scale
