"""Rows to one sequence without padding: laid end to end, with the images of all of them in one list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..reduction.packed_rows import ROW_LENGTHS
from .collator import Collator, pad_to_shape, with_weights
from .encoder import Encoded
from .supervision import IGNORED


class PackingCollator(Collator):
    """A batch of B rows is [1, sum of their lengths], without a mask; `row_lengths` is a list of B ints."""

    def __init__(self, processor: Any) -> None:
        super().__init__(processor)

    def __call__(self, rows: Sequence[Encoded | Any]) -> dict[str, Any]:
        features = [row.features for row in rows if isinstance(row, Encoded)] or [self.blank]
        features = with_weights(features)
        names = dict.fromkeys(name for row in features for name in row)
        batch: dict[str, Any] = {name: self._lay(name, features) for name in names if name != "attention_mask"}
        return {**batch, ROW_LENGTHS: [row["input_ids"].shape[1] for row in features]}

    def _lay(self, name: str, rows: list[dict[str, Tensor]]) -> Tensor:
        given = [row for row in rows if name in row]
        tensors = [row[name] for row in given]
        if len(given) == len(rows) and all(row[name].shape == row["input_ids"].shape for row in given):
            if name == "labels":  # no token of a row predicts its first one
                tensors = [tensor.index_fill(1, torch.tensor([0]), IGNORED) for tensor in tensors]
            return torch.cat(tensors, 1)
        # Idefics3 has [rows, images, ...]: one row here, which has all of them.
        own = 2 if name in self.by_row else 1
        shape = [max(sizes) for sizes in zip(*(tensor.shape[own:] for tensor in tensors), strict=True)]
        return torch.cat([pad_to_shape(tensor, [*tensor.shape[1:own], *shape]) for tensor in tensors], own - 1)
