"""Whether the small model that is timed finds room on the device, and a narrower one where it does not."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ..profiling.device import free_bytes
from ..profiling.flops import QuadraticCost, layer_flops, one_layer_config
from .setup import Setup

_SHARE = 0.7  # of the free memory
_COPIES = 4  # of each weight: itself, its gradient, and two moments where it trains


def fitting(config: Any, setup: Setup, device: torch.device) -> tuple[Any, int]:
    """The config, or one whose decoder is narrower by the factor that comes with it, so that it fits."""
    factor, room = 1, free_bytes(device) * _SHARE
    while _size(narrowed(config, factor), setup) > room:
        factor *= 2
        if config.get_text_config().num_attention_heads < 2 * factor:
            raise ValueError(
                f"one decoder layer with vision tower and head needs more than the {room / 2**30:.1f} GiB free on "
                f"{device}; plan with --no-timing, or on another device"
            )
    return narrowed(config, factor), factor


def _size(config: Any, setup: Setup) -> int:
    weights = setup.build(one_layer_config(config), "meta").parameters()
    return sum(w.numel() * w.element_size() * (_COPIES if w.requires_grad else 1) for w in weights)


def narrowed(config: Any, factor: int) -> Any:
    """Fewer heads of the same size, and a width in proportion."""
    if factor == 1:
        return config
    small = copy.deepcopy(config)
    text = small.get_text_config()
    text.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    text.num_key_value_heads = max(1, text.num_key_value_heads // factor)
    for name in ("num_attention_heads", "hidden_size", "intermediate_size"):
        setattr(text, name, getattr(text, name) // factor)
    return small


def widened(measured: QuadraticCost, config: Any, small: Any, setup: Setup) -> QuadraticCost:
    """What was measured on the narrow layer, in proportion to the FLOPs of the true one."""
    true, narrow = (
        forward + backward for forward, backward in (layer_flops(setup.one_layer(c)) for c in (config, small))
    )
    return measured.scaled(true.token / narrow.token, true.pair / narrow.pair)
