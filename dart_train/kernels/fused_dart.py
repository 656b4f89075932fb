"""DART with its selection in fused kernels: `reduction.method: dart_train.kernels.fused_dart:FusedDART`.

For a GPU with Triton, where the launches of a selection take longer than its arithmetic. What the kernels do not do
(other pivots than by keys, K = 0, very long sequences, a CPU) the PyTorch version does.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reduction import DART, SelectionContext
from ..reduction.context import per_group_tensor


@dataclass(frozen=True, kw_only=True)
class FusedDART(DART):
    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        groups, keys = context.groups, context.observed.keys
        if keys is None or self.pivot not in ("key_max", "key_min") or not can_run(keys.device):
            return super().select(context)
        from . import selection

        n, length = groups.slots.shape[1], groups.length
        if max(n, length) > selection.LARGEST_BLOCK or length < self.text_pivots:
            return super().select(context)
        image = min(n, max(1, self.image_pivots))
        counts, quotas = self._quotas(context, image)
        plan = [[count, *quota] for count, quota in zip(counts, quotas, strict=True)]
        keep, pivots, is_pivot = selection.select(
            keys.detach(),
            context.states.detach(),
            None if context.scale is None else context.scale.detach().to(keys.device),
            groups.rows,
            groups.slots,
            groups.valid,
            groups.prompt,
            per_group_tensor(plan, groups.slots),
            image,
            -1.0 if self.pivot == "key_min" else 1.0,
        )
        context.pivots = pivots, is_pivot
        return keep


def can_run(device: torch.device) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return importlib.util.find_spec("triton") is not None and (device.type == "cuda" or interpreted)
