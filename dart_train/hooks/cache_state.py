"""What decoding must know of the prefill: how long it was, and which cached tokens of each stage are padding.

It is stored on the cache object, so that it lives exactly as long as the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ATTRIBUTE = "_dart_train_state"
FULL_LENGTH_SINCE = "_dart_train_layer_length"  # the cache's own get_seq_length, once it was replaced


@dataclass
class CacheState:
    """After a prefill of `length` tokens, stage s holds valid[s] [B, P_s] of them in its layers' caches, of the places
    places[s] [B, P_s] in the full sequence.

    positions_from_mask: the position ids of the cached tokens were counted from the mask, so later ones are, too.
    """

    length: int
    valid: list[Tensor]
    places: list[Tensor]
    positions_from_mask: bool = False

    @staticmethod
    def of(cache: Any) -> CacheState | None:
        return getattr(cache, ATTRIBUTE, None)

    def valid_mask(self, stage: int, mask: Tensor | None, new: int, held: int) -> Tensor:
        """[B, held + new] bool: which of a stage's `held` cached and `new` tokens are real. `mask` is the full-length
        2-D mask; tokens after the prefill are in it at the same places, counted from the prefill's end."""
        prefix = self.valid[stage]
        after = held + new - prefix.shape[1]
        if mask is None:
            tail = prefix.new_ones(prefix.shape[0], after)
        else:
            tail = mask[:, self.length : self.length + after].bool()
        return torch.cat([prefix, tail], 1)

    def places_of(self, stage: int, number: int) -> Tensor:
        """[B, number]: places in the full sequence of the first tokens of a stage, those after the prefill included."""
        before = self.places[stage]
        after = torch.arange(self.length, self.length + number - before.shape[1], device=before.device)
        return torch.cat([before, after.expand(len(before), -1)], 1)


def store_cache_state(cache: Any, state: CacheState, first_stage: int) -> None:
    """first_stage: the stage that the first layer with keys and values belongs to; -1: it is before layer K."""
    setattr(cache, ATTRIBUTE, state)
    if first_stage >= 0 and not hasattr(cache, FULL_LENGTH_SINCE):
        _report_full_length(cache, first_stage)


def _report_full_length(cache: Any, stage: int) -> None:
    """Where the first layer with keys and values is short too, as with K = 0: a model without position ids takes the
    next position from its length."""
    layer_length = cache.get_seq_length

    def get_seq_length(layer_idx: int = 0) -> int:
        state = CacheState.of(cache)
        dropped = state.length - state.valid[stage].shape[1] if state is not None and layer_idx == 0 else 0
        return int(layer_length(layer_idx)) + dropped

    setattr(cache, FULL_LENGTH_SINCE, layer_length)
    cache.get_seq_length = get_seq_length


def cached_length(cache: Any, layer: int) -> int:
    """Tokens that a layer's own cache was given; one with a sliding window no longer holds all of them."""
    return int(getattr(cache, FULL_LENGTH_SINCE, cache.get_seq_length)(layer))


class OwnLengths:
    """A cache that reports the length of each layer's own cache: what masks need where `_report_full_length` is on."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return cached_length(self._cache, layer_idx)

    get_query_offset = get_seq_length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
