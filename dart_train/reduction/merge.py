"""What becomes of the dropped tokens of a method that merges."""

from __future__ import annotations

import torch
from torch import Tensor


def average_merged(visual: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """visual [R, N, D], targets [R, N] (the kept token that each token is merged into) -> [R, N, D], the mean at each
    kept token; differentiable. In float32: a sum of many tokens in bfloat16 stops growing."""
    weight = valid.float()
    into = targets[..., None].expand_as(visual)
    total = torch.zeros(visual.shape, device=visual.device).scatter_add(1, into, visual.float() * weight[..., None])
    number = torch.zeros_like(weight).scatter_add(1, targets, weight).clamp_min(1)
    return (total / number[..., None]).to(visual.dtype)
