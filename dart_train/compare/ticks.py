"""When each token of an answer was there, noted while it is written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from ..bench.timing import clock, synchronize


class Ticks(StoppingCriteria):
    """Asked by `generate` behind every token whether to stop, which it never wants. `generate` itself waits for the
    device there, so that waiting here costs nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        synchronize(input_ids.device)
        self.times.append(clock.read())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def apart(self) -> float:
        """Seconds from one token to the next, the mean over all behind the first."""
        return (self.times[-1] - self.times[0]) / max(1, len(self.times) - 1)
