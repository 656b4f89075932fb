"""Rows as the model takes them in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.collator import Collator
from .rows import Rows
from .setup import Setup


def encoded(rows: Rows, numbers: Sequence[int], setup: Setup, device: torch.device) -> dict[str, Tensor]:
    """One batch on the device, labels apart."""
    encoder, each = rows.encoder, []
    for number in numbers:
        place = rows.rows[number].place
        sample = place.sample()
        each.append(encoder.encode(sample, [place.source.store.open(ref) for ref in sample.images]))
    batch = Collator(encoder.processor, setup.recipe.data.pad_to_multiple_of)(each)
    del batch["labels"]
    return {name: t.to(device, setup.dtype if t.is_floating_point() else None) for name, t in batch.items()}
