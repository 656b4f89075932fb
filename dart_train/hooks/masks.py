"""The attention mask of a layer that runs on the kept tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from ..models.structure import RECURRENT
from ..reduction.kept_tokens import KeptTokens
from .cache_state import OwnLengths, cached_length
from .forward_state import ForwardState
from .transformers_compat import cache_argument, static_length

MASKED_KERNELS = ("sdpa", "eager")  # the others take no mask of single tokens


def layer_type(config: Any, layer: int) -> str:
    """Mistral has a window and no layer_types."""
    types = getattr(config, "layer_types", None)
    if types:
        return str(types[layer])
    return "sliding_attention" if getattr(config, "sliding_window", None) is not None else "full_attention"


def reaches_window(config: Any, layer: int, length: int) -> bool:
    """Whether a layer has a window that `length` tokens do not fit in."""
    window = getattr(config, "sliding_window", None)
    return layer_type(config, layer) == "sliding_attention" and window is not None and length > window


def check_window(config: Any, layer: int, length: int, by_position: bool = False) -> None:
    """A window counts positions; an index-based kernel would count kept tokens. A mask that is gathered from the full
    one, or made of the kept tokens' places, goes by position."""
    if reaches_window(config, layer, length) and not by_position:
        raise NotImplementedError(
            f"layer {layer} has a sliding window of {config.sliding_window}, and {length} tokens came in: attention "
            f"{config._attn_implementation!r} would slide the window by kept tokens, not by positions. Load the model "
            "with attn_implementation sdpa or eager, or use fewer tokens."
        )


def key_budgets(config: Any) -> dict[str, int]:
    """How many keys an indexer selects, by the names of the settings; empty for models without one."""
    budgets = {name: getattr(config, name, None) for name in ("index_topk", "indexer_budget")}
    blocks, size = getattr(config, "index_topk_blocks", None), getattr(config, "index_block_size", None)
    if blocks is not None and size is not None:
        budgets["index_topk_blocks * index_block_size"] = blocks * size
    return {name: budget for name, budget in budgets.items() if isinstance(budget, int)}


def check_selected_keys(config: Any, layer: int, length: int) -> None:
    """An indexer selects keys, or blocks of keys, by scores over places. It selects all of a short sequence; of a
    longer one it would not select the same among kept tokens, and padding moves the blocks."""
    if layer_type(config, layer) in RECURRENT:
        return
    for name, budget in key_budgets(config).items():
        if length > budget:
            raise NotImplementedError(
                f"layer {layer} attends to {budget} keys ({name}) that an indexer selects, and {length} tokens came "
                "in: among the kept tokens it would select others. Use fewer tokens, or a larger budget."
            )


def reaches_chunk(config: Any, layer: int, length: int) -> bool:
    """Whether a layer attends within chunks that `length` tokens do not fit in."""
    size = getattr(config, "attention_chunk_size", None)
    return layer_type(config, layer) == "chunked_attention" and size is not None and length > size


def check_chunks(config: Any, layer: int, length: int) -> None:
    """Chunks are cut by position; a mask that is built for the kept tokens would cut them by kept tokens."""
    if reaches_chunk(config, layer, length):
        raise NotImplementedError(
            f"layer {layer} attends within chunks of {config.attention_chunk_size} tokens, and {length} tokens came "
            f"in: without a mask of single tokens, as with attention {config._attn_implementation!r}, chunks would be "
            "cut by kept tokens. Load the model with attn_implementation sdpa or eager, or use fewer tokens."
        )


def window_mask(config: Any, layer: int, hidden: Tensor, valid: Tensor, places: Tensor, cache: Any) -> Tensor:
    """[B, 1, new, keys of the layer's cache] of a sliding window over places in the full sequence.

    hidden [B, new, D]; valid, places [B, all tokens of the stage]. The cache holds the last `window - 1` of these,
    which are at least those of the last `window - 1` places."""
    new = hidden.shape[1]
    keys, _ = cache.get_mask_sizes(new, layer)
    query, place = places[:, -new:, None], places[:, None, -keys:]
    visible = (place <= query) & (place > query - config.sliding_window) & valid[:, None, -keys:]
    return _for_kernel(config, hidden, visible | (place == query))  # padding sees itself, so that no row is empty


def chunk_mask(
    config: Any, layer: int, hidden: Tensor, valid: Tensor, places: Tensor, cache: Any, real: Tensor | None
) -> Tensor:
    """As `window_mask`, of attention within chunks of places, which are counted from the first real token of a row.

    real: the full-length 2-D mask. The cache holds the last `chunk - 1` tokens, which are at least those of as many
    places."""
    new, size = hidden.shape[1], config.attention_chunk_size
    keys, _ = cache.get_mask_sizes(new, layer)
    first = places.new_zeros(len(places)) if real is None else (real.cumsum(1) == 0).sum(1)
    query, place = places[:, -new:, None], places[:, None, -keys:]
    chunk = [(at - first[:, None, None]).div(size, rounding_mode="floor") for at in (query, place)]
    visible = (place <= query) & (chunk[0] == chunk[1]) & valid[:, None, -keys:]
    return _for_kernel(config, hidden, visible | (place == query))


def _for_kernel(config: Any, hidden: Tensor, visible: Tensor) -> Tensor:
    """visible [B, new, keys] -> the mask [B, 1, new, keys], bool or additive."""
    visible = visible[:, None]
    if config._attn_implementation != "eager":
        return visible
    return torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)


def window_after_prefill_mask(
    config: Any, layer: int, hidden: Tensor, valid: Tensor, places: Tensor, cache: Any
) -> Tensor:
    """[B, 1, new, keys of the layer's cache] of UnlimitedOCR's attention: to the prefill, which the cache holds first,
    and to the last `sliding_window` places after it. valid, places [B, all tokens of the stage]."""
    new, held = hidden.shape[1], cache.layers[layer].prefill_length
    keys, _ = cache.get_mask_sizes(new, layer)
    first = valid.shape[1] - (keys - held)  # of the tokens that the cache holds after the prefill
    query, key = places[:, -new:, None], places[:, None, first:]
    later = (key <= query) & (key > query - config.sliding_window) & valid[:, None, first:]
    visible = torch.cat([valid[:, None, :held].expand(-1, new, -1), later | (key == query)], 2)[:, None]
    if config._attn_implementation != "eager":
        return visible
    return torch.zeros_like(visible, dtype=hidden.dtype).masked_fill(~visible, torch.finfo(hidden.dtype).min)


def layer_mask(state: ForwardState, stage: int, given: Any, cache: Any, hidden: Tensor, config: Any, layer: int) -> Any:
    """The mask of a layer of `stage`, whose hidden states are short, from the one that the model gave it."""
    plan = state.plan
    if layer_type(config, layer) in RECURRENT:
        return recurrent_mask(state, stage, given)
    if not state.decoding and not plan.past:
        kept = state.stages[stage].kept
        by_position = isinstance(given, Tensor) and given.ndim == 4 and state.compact_places is None
        check_window(config, layer, kept.source_length, by_position)
        if not by_position:
            check_chunks(config, layer, kept.source_length)
        if not plan.static:
            return prefill_mask(given, kept, hidden, config, layer)
        if isinstance(given, Tensor) and given.ndim == 4:
            given = given[..., : kept.source_length]
        return to_slots(prefill_mask(given, kept, hidden, config, layer), static_length(cache, layer))
    if (
        state.decoding
        and not plan.static
        and hidden.shape[:2] == (1, 1)
        and layer_type(config, layer) == "full_attention"
    ):
        return None  # one row has no padding once it is short, and its newest token sees all of it
    if state.decoding:
        held, new, before = cached_length(cache, layer), hidden.shape[1], plan.cache_state
        assert before is not None
        valid = before.valid_mask(stage, plan.attention_mask, new, held)
        places, length = before.places_of(stage, held + new), held + new + before.length - before.valid[stage].shape[1]
    else:
        valid, places = state.cached_and_kept(stage)
        length = plan.past + state.stages[stage].kept.source_length
    if layer_type(config, layer) == "reference_sliding_attention":
        return window_after_prefill_mask(config, layer, hidden, valid, places, cache)
    windowed = reaches_window(config, layer, length) and config._attn_implementation in MASKED_KERNELS
    own = window_mask(config, layer, hidden, valid, places, cache) if windowed else None
    if plan.two_way_images and isinstance(given, Tensor) and given.ndim == 4:
        return continued_mask(given, state.stages[stage].kept, valid, own, plan.past, plan.attention_mask)
    if own is not None:
        return own
    if reaches_chunk(config, layer, length) and config._attn_implementation in MASKED_KERNELS:
        return chunk_mask(config, layer, hidden, valid, places, cache, plan.attention_mask)
    check_window(config, layer, length)
    check_chunks(config, layer, length)
    one_row = valid.shape[0] == 1  # it has no padding once it is short
    return build_causal_mask(config, hidden, None if one_row else valid, cache, layer)


def recurrent_mask(state: ForwardState, stage: int, given: Any) -> Any:
    """[B, S] of a layer whose state runs over the tokens, or None: it sets padding to zero, and padding on the left
    leaves the state at zero. While decoding, the mask is one of the new tokens alone, of which none was dropped."""
    if state.decoding:
        return given
    kept = state.stages[stage].kept
    return kept.valid if kept.ragged else None


def prefill_mask(mask: Any, kept: KeptTokens, hidden: Tensor, config: Any, layer: int) -> Any:
    """The prefill's mask, for the kept tokens. None stays None where nothing is ragged, so that fast kernels stay
    usable."""
    if mask is None:
        return build_causal_mask(config, hidden, kept.valid, None, layer) if kept.ragged else None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return kept.valid if kept.ragged else None
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
    visible = kept.valid[:, None, None, :]
    return short & visible if short.dtype == torch.bool else short.masked_fill(~visible, torch.finfo(short.dtype).min)


def to_slots(mask: Any, slots: int) -> Any:
    """A mask [B, 1, S, S] for the keys of a static cache: the slots after those of the S tokens are empty."""
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return mask
    empty = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return nn.functional.pad(mask, (0, slots - mask.shape[-1]), value=empty)


def last_rows(mask: Any, number: int) -> Any:
    """Of a mask [B, 1, S, keys]: those of the last `number` queries, where a layer runs on these alone."""
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[2] == number:
        return mask
    return mask[:, :, mask.shape[2] - number :]


def continued_mask(
    mask: Tensor, kept: KeptTokens, valid: Tensor, windowed: Tensor | None, past: int, real: Tensor | None
) -> Tensor:
    """[B, 1, S, cached + S] of a prefill after a filled cache, from its full-length mask [B, 1, L, cached + L].

    New tokens see each other as in the full mask, in both directions where images do. They see all cached ones, valid
    [B, cached + S], or those that a window over places leaves: `windowed` [B, 1, S, keys of this layer].
    real: the full-length 2-D mask."""
    length = kept.source_length
    # Sized to the first layer with this kind of attention, which may be a reduced one. The columns of new tokens are
    # the last ones all the same, but padding was looked up at the wrong places: that is right where there is none.
    to_full_length = mask.shape[-1] == past + length or windowed is not None
    if not to_full_length and real is not None and not bool(real[:, mask.shape[-1] - length :].all()):
        raise NotImplementedError(
            f"a padded batch of {mask.shape[0]} samples adds images to {past} cached tokens, and the model sizes its "
            f"mask {tuple(mask.shape)} to a layer that was reduced: give turns of one length, continue one sample at a "
            "time, or start a new cache"
        )
    new = kept.gather(kept.gather(mask[..., -length:], 2), 3)
    seen = kept.valid[:, None, None, :]
    if windowed is not None:
        cached = windowed[..., : -kept.length]
    else:
        cached = valid[:, None, None, : -kept.length].expand(-1, 1, kept.length, -1)
        if new.dtype != torch.bool:
            cached = new.new_zeros(()).expand_as(cached).masked_fill(~cached, torch.finfo(new.dtype).min)
    hidden = new & seen if new.dtype == torch.bool else new.masked_fill(~seen, torch.finfo(new.dtype).min)
    return torch.cat([cached, hidden], 3)


def build_causal_mask(config: Any, hidden: Tensor, valid: Tensor | None, cache: Any, layer: int) -> Any:
    """A causal mask by transformers' own means, sized to this layer's cache. Position ids are left out: their gaps
    would be taken for packed sequences."""
    sliding = layer_type(config, layer) == "sliding_attention"
    make = create_sliding_window_causal_mask if sliding else create_causal_mask
    return make(
        config=config,
        inputs_embeds=hidden,
        attention_mask=valid,
        position_ids=None,
        layer_idx=layer,
        **{cache_argument(make): None if cache is None else OwnLengths(cache)},
    )
