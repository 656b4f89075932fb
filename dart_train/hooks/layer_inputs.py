"""What a decoder layer is given besides the hidden states, shortened to the kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .forward_state import ForwardState
from .transformers_compat import CACHE_NAMES

TOKEN_KEYWORDS = ("moe_mm_token_type_ids",)  # [B, L], one entry for each token
# Labels reach the layers of some families in **kwargs, where nothing reads them.
KNOWN_KEYWORDS = {"attention_mask", "position_embeddings", "position_ids", "labels", *TOKEN_KEYWORDS, *CACHE_NAMES}


def gather_kwargs(state: ForwardState, stage: int, kwargs: dict[str, Any], with_positions: bool) -> None:
    """The rotary embeddings carry the kept tokens' own positions; position ids with gaps would make flash attention
    believe in packed sequences, so only layers that compute with them get them."""
    kept, places = state.stages[stage].kept, state.kept_positions(stage)
    length, rotary = kept.source_length, kwargs.get("position_embeddings")
    if isinstance(rotary, Tensor):  # Llama 4 has one tensor of complex numbers
        kwargs["position_embeddings"] = state.gather_rotary(rotary, stage) if rotary.shape[-2] == length else rotary
    elif rotary is not None:
        kwargs["position_embeddings"] = tuple(
            state.gather_rotary(t, stage) if t.shape[-2] == length else t for t in rotary
        )
    positions = kwargs.get("position_ids")
    if rotary is None and positions is None and state.compact_places is not None:
        raise NotImplementedError(
            "positions='compact': the decoder layers are given neither rotary embeddings nor position ids, so that the "
            "positions of tokens cannot be changed; use positions='original'"
        )
    if positions is not None:
        wanted = (with_positions or rotary is None) and positions.shape[-1] == length
        kwargs["position_ids"] = places.gather(positions, -1, positions.ndim - 2) if wanted else None
    for name in TOKEN_KEYWORDS:
        if kwargs.get(name) is not None:
            kwargs[name] = kept.gather(kwargs[name])
    unknown = [
        name
        for name, x in kwargs.items()
        if name not in KNOWN_KEYWORDS and isinstance(x, Tensor) and x.ndim > 1 and length in x.shape[1:3]
    ]
    if unknown and not kept.keeps_all:
        raise NotImplementedError(
            f"a decoder layer is given {', '.join(unknown)} of full length {length}, which the reduction does not "
            "know how to shorten"
        )


def gather_positional(state: ForwardState, stage: int, args: Sequence[Any]) -> list[Any]:
    """What a layer is given besides the hidden states: tensors [B or 1, L, ...], such as Gemma 4's per-layer inputs,
    and rotary embeddings."""
    kept, short = state.stages[stage].kept, list[Any]()
    for x in args:
        if isinstance(x, tuple):
            x = tuple(state.gather_rotary(t, stage) for t in x)
        elif isinstance(x, Tensor) and x.ndim > 1 and x.shape[1] == kept.source_length:
            x = kept.gather(x)
        short.append(x)
    return short
