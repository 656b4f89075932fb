"""Where kept tokens were among all, carried from the image encoder to the language model.

vLLM caches what the encoder returns and hands parts of it to later prefill chunks, so the places travel in the
embeddings themselves, as extra columns at their end. They are offsets (time, row, column) from the image's own
position, each in two columns to the base 128: bfloat16 holds whole numbers up to 256 exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLUMNS = 6
_BASE = 128
LARGEST = _BASE * _BASE - 1


def append_offsets(embeddings: Tensor, offsets: Tensor) -> Tensor:
    """embeddings [S, D], offsets [S, 3] long, each at most LARGEST -> [S, D + COLUMNS]."""
    digits = torch.stack([offsets // _BASE, offsets % _BASE], 2).flatten(1)  # [S, 6]
    return torch.cat([embeddings, digits.to(embeddings.dtype)], 1)


def split_offsets(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse: embeddings [S, D] and offsets [S, 3] long."""
    high, low = rows[:, -COLUMNS:].long().unflatten(1, (3, 2)).unbind(2)
    return rows[:, :-COLUMNS], high * _BASE + low


def grid_offsets(frames: int, height: int, width: int, time_factor: float = 1.0) -> Tensor:
    """[frames * height * width, 3] long: (time, row, column) of each token; time in units of positions."""
    time = (torch.arange(frames, dtype=torch.float64) * time_factor).long()
    return torch.cartesian_prod(time, torch.arange(height), torch.arange(width)).view(-1, 3)


def linear_offsets(number: int) -> Tensor:
    """[number, 3] long: for models with one position a token, which is the first of the three."""
    offsets = torch.zeros(number, 3, dtype=torch.long)
    offsets[:, 0] = torch.arange(number)
    return offsets
