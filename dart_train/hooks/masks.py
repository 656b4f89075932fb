"""The attention mask of a layer that runs on the short sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from ..reduction.kept_tokens import KeptTokens
from . import forward_state as memory
from .forward_state import ForwardState
from .plan_batch import check_cache
from .transformers_compat import cache_argument


def layer_type(config: Any, layer: int) -> str:
    """Mistral has a window and no layer_types."""
    types = getattr(config, "layer_types", None)
    if types:
        return str(types[layer])
    return "sliding_attention" if getattr(config, "sliding_window", None) is not None else "full_attention"


def check_window(config: Any, layer: int, seen: int, by_position: bool = False) -> None:
    """A window counts positions; a short cache or an index-based kernel would count kept tokens. A mask that is
    gathered from the full one still goes by position, so training may be longer than the window."""
    window = getattr(config, "sliding_window", None)
    if layer_type(config, layer) != "sliding_attention" or window is None or seen <= window or by_position:
        return
    raise NotImplementedError(
        f"layer {layer} has a sliding window of {window}, and {seen} tokens came in: over the short sequence the "
        "window would slide by kept tokens, not by positions. Use fewer tokens, or a full-attention model."
    )


def layer_mask(
    flight: ForwardState, stage: int, given: Any, cache: Any, hidden: Tensor, config: Any, layer: int
) -> Any:
    """The mask of a layer of `stage`, whose hidden states are short, from the one that the model gave it."""
    if not flight.decoding and not flight.past:
        kept = flight.kept[stage]
        by_position = isinstance(given, Tensor) and given.ndim == 4
        check_window(config, layer, kept.source_length, by_position)
        return short_mask(given, kept, hidden, config, layer)
    check_cache(cache)
    if flight.decoding and hidden.shape[:2] == (1, 1) and layer_type(config, layer) == "full_attention":
        return None  # one row has no padding once it is short, and its newest token sees all of it
    held, new = memory.cached_length(cache, layer), hidden.shape[1]
    if flight.decoding:
        assert flight.memory is not None
        valid = flight.memory.short_valid(stage, flight.mask, new, held)
        check_window(config, layer, flight.memory.length + valid.shape[1] - flight.memory.valid[stage].shape[1])
    else:
        check_window(config, layer, flight.past + flight.kept[stage].source_length)
        valid = torch.cat([flight.cached_valid_mask(stage), flight.kept[stage].valid], 1)
    one_row = valid.shape[0] == 1  # it has no padding once it is short
    return build(config, hidden, None if one_row else valid, cache, layer)


def short_mask(mask: Any, kept: KeptTokens, hidden: Tensor, config: Any, layer: int) -> Any:
    """The prefill's mask, for the kept tokens. None stays None where nothing is ragged, so that fast kernels
    stay on."""
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        valid = kept.valid if kept.ragged else None
        return valid if mask is not None else valid if valid is None else build(config, hidden, valid, None, layer)
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise NotImplementedError(
            f"attention mask of type {type(mask).__name__}: expected None, [batch, length] or "
            "[batch, 1, length, length]. Load the model with attn_implementation sdpa, eager or flash_attention_2."
        )
    if tuple(mask.shape[-2:]) != (kept.source_length, kept.source_length):
        raise NotImplementedError(
            f"attention mask of shape {tuple(mask.shape)}: expected the last two sizes to be {kept.source_length}, "
            "the length of the sequence."
        )
    short = kept.gather(kept.gather(mask, 2), 3)
    if not kept.ragged:
        return short
    seen = kept.valid[:, None, None, :]
    return short & seen if short.dtype == torch.bool else short.masked_fill(~seen, torch.finfo(short.dtype).min)


def build(config: Any, hidden: Tensor, valid: Tensor | None, cache: Any, layer: int) -> Any:
    """A causal mask by the model's own means, sized to this very layer's cache. Position ids are left out:
    their gaps would be taken for packed sequences."""
    sliding = layer_type(config, layer) == "sliding_attention"
    make = create_sliding_window_causal_mask if sliding else create_causal_mask
    return make(
        config=config,
        inputs_embeds=hidden,
        attention_mask=valid,
        position_ids=None,
        layer_idx=layer,
        **{cache_argument(make): cache},
    )
