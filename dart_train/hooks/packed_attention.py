"""Attention within each row of a packed sequence, by the kernel that the model is configured with.

The rows travel with the attention mask, which every decoder layer passes on to its attention, and which gradient
checkpointing keeps for the recomputation. Flash kernels take the rows' boundaries (`cu_seq_lens_q`); for the others the
kernel runs on each row, which costs what the rows cost: a block-diagonal mask would cost the square of their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..reduction.packed_rows import PackedRows
from .observers import RecordingAttentionConfig
from .transformers_compat import attention_kernel

PACKED_KERNEL = "dart_train_packed_rows"
FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


@dataclass(frozen=True)
class PackedMask:
    """In place of a layer's attention mask. mask: what the model made, [1, 1, T, T] or None; of it, only what is inside
    a row counts. None: causal."""

    mask: Tensor | None
    rows: PackedRows


class PackedAttentionConfig:
    """Replaces the config of one attention module, so that its next call comes to `_attend_within_rows`."""

    def __init__(self, config: Any, rows: PackedRows) -> None:
        self.original, self.rows = config, rows
        self._attn_implementation = PACKED_KERNEL

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


def before_attention(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Pre-hook of an attention module. An observer that is on the module already stays outside."""
    packed = kwargs.get("attention_mask")
    if not isinstance(packed, PackedMask):
        found = next((n for n, x in enumerate(args) if isinstance(x, PackedMask)), None)
        if found is None:
            return None
        packed, args = args[found], (*args[:found], args[found].mask, *args[found + 1 :])
    else:
        kwargs = {**kwargs, "attention_mask": packed.mask}
    if isinstance(module.config, RecordingAttentionConfig):
        module.config.original = PackedAttentionConfig(module.config.original, packed.rows)
    else:
        module.config = PackedAttentionConfig(module.config, packed.rows)
    return args, {name: value for name, value in kwargs.items() if name not in FLASH_ARGUMENTS}


def after_attention(module: Any, args: Any, output: Any) -> None:
    """Also where the attention raised before its kernel, as it does at the end of a recomputation."""
    while isinstance(getattr(module, "config", None), PackedAttentionConfig | RecordingAttentionConfig):
        module.config = module.config.original


def _attend_within_rows(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
) -> Any:
    """query [1, H, T, d], key and value [1, Hkv, T, d] -> [1, T, H, d]."""
    packed: Any = module.config
    module.config = packed.original
    kernel, rows = attention_kernel(module, packed.original), packed.rows
    if query.shape[2] != rows.total or key.shape[2] != rows.total:
        raise NotImplementedError(
            f"packed rows of {rows.total} tokens, but attention came with {query.shape[2]} queries and {key.shape[2]} "
            "keys: give use_cache=False, and one forward for all rows"
        )
    implementation = str(packed.original._attn_implementation)
    if "flash" in implementation:
        ends = rows.on(query.device, "cu_seq_lens")
        kwargs |= dict(zip(FLASH_ARGUMENTS, (ends, ends, rows.longest, rows.longest), strict=True))
        return kernel(module, query, key, value, None, *args, **kwargs)
    outputs = []
    parts = zip(*(x.split(rows.lengths, 2) for x in (query, key, value)), rows.starts, strict=True)
    for q, k, v, start in parts:
        stop = start + q.shape[2]
        own = mask[..., start:stop, start:stop] if isinstance(mask, Tensor) else _causal_mask(q, implementation)
        outputs.append(kernel(module, q, k, v, own, *args, **kwargs)[0])
    return torch.cat(outputs, 1), None


def _causal_mask(query: Tensor, implementation: str) -> Tensor | None:
    """sdpa is causal by itself where it is given no mask; the eager kernel is not."""
    if implementation == "sdpa":
        return None
    length = query.shape[2]
    lowest = torch.full((length, length), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device)
    return lowest.triu(1)[None, None]


ALL_ATTENTION_FUNCTIONS.register(PACKED_KERNEL, _attend_within_rows)
