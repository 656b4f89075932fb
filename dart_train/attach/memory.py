"""What decoding must remember of the prefill; it lives on the cache object, and goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTRIBUTE = "_dart_train_memory"


@dataclass
class Memory:
    """After a prefill of `length` tokens, stage s holds valid[s] [B, P_s] of them in its layers' caches."""

    length: int
    valid: list[Tensor]

    @staticmethod
    def of(cache: Any) -> Memory | None:
        return getattr(cache, ATTRIBUTE, None)

    def short_valid(self, stage: int, mask: Tensor | None, new: int, held: int) -> Tensor:
        """[B, held + new] bool: which of a stage's cached and new tokens are real. `mask` is the full-length
        2-D mask; what came after the prefill is in it at the same places, counted from the prefill's end."""
        prefix = self.valid[stage]
        after = held + new - prefix.shape[1]
        if mask is None:
            tail = prefix.new_ones(prefix.shape[0], after)
        else:
            tail = mask[:, self.length : self.length + after].bool()
        return torch.cat([prefix, tail], 1)


def remember(cache: Any, memory: Memory, short_first_layer: bool) -> None:
    setattr(cache, ATTRIBUTE, memory)
    if short_first_layer and not hasattr(cache, "_dart_train_length"):
        _tell_full_length(cache)


def _tell_full_length(cache: Any) -> None:
    """With K = 0 layer 0 is short too, but generation takes its next position from layer 0's length."""
    held = cache.get_seq_length

    def get_seq_length(layer_idx: int = 0) -> int:
        memory = Memory.of(cache)
        dropped = memory.length - memory.valid[0].shape[1] if memory is not None and layer_idx == 0 else 0
        return int(held(layer_idx)) + dropped

    cache._dart_train_length = held
    cache.get_seq_length = get_seq_length


def held_by(cache: Any, layer: int) -> int:
    """Tokens in a layer's own cache."""
    return int(getattr(cache, "_dart_train_length", cache.get_seq_length)(layer))
