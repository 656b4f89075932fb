"""Forwards of packed rows: several rows laid end to end in one sequence [1, T], none of which sees another.

A forward is packed where the model is called with `row_lengths` (a list of ints: this package's own collator), with
`cu_seq_lens_q`, or with position ids that start again and no attention mask (the collators of other trainers). Each row
then gets the positions that the model would give it in a padded batch, and attention stays within rows
(`packed_attention.py`). Layers are hooked from the first packed forward on: other forwards are untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..models.structure import ModelParts
from ..reduction.batch_layout import IGNORED
from ..reduction.packed_rows import ROW_LENGTHS, PackedRows
from .packed_attention import FLASH_ARGUMENTS, PackedMask, after_attention, before_attention
from .transformers_compat import FIRST_POSITION, cache_of, dispatches_attention

GRIDS = ("image_grid_thw", "video_grid_thw")


class RowPacking:
    """Of one model; `rows` are those of the forward that is running, None where it is not packed."""

    def __init__(self, parts: ModelParts) -> None:
        self.parts = parts
        self.handles: list[Any] = []
        self.rows: PackedRows | None = None
        self._hooked = False
        self._inner_signature = inspect.signature(parts.inner.forward)

    def register_hooks(self) -> RowPacking:
        """Before all other hooks of this package: they are given the packed forward as it runs."""
        parts, eager = self.parts, torch.compiler.disable
        self.handles += [
            parts.top.register_forward_pre_hook(eager(self._on_model_start), with_kwargs=True),
            parts.top.register_forward_hook(eager(self._on_model_end), always_call=True),
            parts.inner.register_forward_pre_hook(eager(self._on_inner_start), with_kwargs=True),
        ]
        return self

    def remove(self) -> None:
        while self.handles:
            self.handles.pop().remove()
        self._hooked = False

    def _on_model_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self.rows = _rows_of(kwargs)
        if self.rows is None:
            return None
        kwargs = {name: value for name, value in kwargs.items() if name not in (ROW_LENGTHS, *FLASH_ARGUMENTS)}
        labels = kwargs.get("labels")
        if isinstance(labels, Tensor):
            starts = self.rows.on(labels.device, "starts")
            kwargs["labels"] = labels.index_fill(1, starts, IGNORED)  # no token of a row predicts its first one
        return args, kwargs

    def _on_model_end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.rows = None

    def _on_inner_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        rows = self.rows
        if rows is None:
            return None
        self._hook_layers()
        inputs = {**self._inner_signature.bind_partial(*args, **kwargs).arguments}
        inputs |= inputs.pop("kwargs", {})
        given = inputs.get("input_ids")
        given = inputs.get("inputs_embeds") if given is None else given
        if given is None or tuple(given.shape[:2]) != (1, rows.total):
            shape = None if given is None else tuple(given.shape[:2])
            raise ValueError(f"packed rows of {rows.total} tokens in all, but a batch of shape {shape} came in")
        if cache_of(inputs) is not None and cache_of(inputs).get_seq_length():
            raise NotImplementedError("packed rows continue a filled cache: pad them instead")
        positions = self._positions(rows, inputs, given.device)
        # A mask of ones: without one, transformers would look for packed rows itself and make a mask of T x T.
        ones = torch.ones(1, rows.total, dtype=torch.long, device=given.device)
        return args, {**kwargs, "position_ids": positions, "attention_mask": ones, "use_cache": False}

    def _positions(self, rows: PackedRows, inputs: Mapping[str, Any], device: torch.device) -> Tensor:
        """[1, T], or [3, 1, T] of a model that counts images by their grid: those of its own rows, padded."""
        given, inner = inputs.get("position_ids"), self.parts.inner
        if given is not None and given.ndim == 3:
            return given[-3:]  # a fourth one is of text alone, for masks
        by_grid = hasattr(inner, "get_rope_index") and any(inputs.get(name) is not None for name in GRIDS)
        if not by_grid or inputs.get("input_ids") is None:
            return rows.on(device, "place")[None] + FIRST_POSITION.get(self.parts.top.config.model_type, 0)
        unpacked = {
            name: rows.unpack(x)
            for name, x in {**inputs, "mm_token_type_ids": self._token_types(inputs)}.items()
            if isinstance(x, Tensor) and tuple(x.shape) == (1, rows.total)
        }
        own = {**inputs, **unpacked, "attention_mask": rows.real().to(device, torch.long)}
        names = inspect.signature(inner.get_rope_index).parameters
        positions, _ = inner.get_rope_index(**{name: own[name] for name in names if name in own})
        return rows.pack(positions, rows_at=1)

    def _token_types(self, inputs: Mapping[str, Any]) -> Tensor:
        """[1, T]: 1 at image tokens, 2 at those of videos, where the batch does not have them."""
        given: Tensor | None = inputs.get("mm_token_type_ids")
        if given is not None:
            return given
        ids, config = inputs["input_ids"], self.parts.top.config
        return (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()

    def _hook_layers(self) -> None:
        """In front of all other hooks of the layers, those of this package included."""
        if self._hooked:
            return
        check_packing(self.parts)
        eager, self._hooked = torch.compiler.disable, True
        for number, layer in enumerate(self.parts.layers):
            attention = self.parts.attention(number)
            self.handles += [
                layer.register_forward_pre_hook(eager(self._on_layer), with_kwargs=True, prepend=True),
                attention.register_forward_pre_hook(eager(before_attention), with_kwargs=True, prepend=True),
                attention.register_forward_hook(eager(after_attention), always_call=True),
            ]

    def _on_layer(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """The rows at full length, from where a reduction shortens them. A teacher's layer has its mask already."""
        mask = kwargs.get("attention_mask")
        if self.rows is None or isinstance(mask, PackedMask):
            return None
        if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 4):
            mask = None  # all ones: flash kernels
        return args, {**kwargs, "attention_mask": PackedMask(mask, self.rows)}


def _rows_of(kwargs: Mapping[str, Any]) -> PackedRows | None:
    """The rows that a forward was called with, by the first of: row_lengths, cu_seq_lens_q, positions."""
    lengths: Any = kwargs.get(ROW_LENGTHS)
    if lengths is not None:
        return PackedRows(tuple(int(n) for n in lengths))
    ends = kwargs.get("cu_seq_lens_q")
    if ends is not None:
        return PackedRows(tuple(torch.diff(ends.cpu()).tolist()))
    positions, no_mask = kwargs.get("position_ids"), kwargs.get("attention_mask") is None
    if not isinstance(positions, Tensor) or not no_mask or cache_of(kwargs) is not None or positions.shape[-2] != 1:
        return None
    if positions.ndim == 3 and len(positions) != 4:
        return None  # of an image's grid, which start again by themselves
    return PackedRows.of_positions(positions[(0,) * (positions.ndim - 1)].cpu())


def check_packing(parts: ModelParts) -> None:
    """Raises NotImplementedError for a model whose tokens reach each other by other means than attention."""
    if reason := why_not_packed(parts):
        raise NotImplementedError(f"{type(parts.top).__name__}: rows cannot be packed: {reason}. Pad them instead")


def why_not_packed(parts: ModelParts) -> str | None:
    """None: they can. The model may be on the meta device."""
    layers = range(len(parts.layers))
    recurrent = [n for n in layers if parts.is_recurrent(n)]
    if recurrent:
        return f"the state of its recurrent layers ({recurrent[0]}, ...) runs on from one row to the next"
    closed = [n for n in layers if not dispatches_attention(parts.attention(n))]
    if closed:
        name = type(parts.attention(closed[0])).__name__
        return f"{name} does not call its kernel through transformers' attention functions"
    if any(parts.key_source(n) != n for n in layers):
        return "some of its layers use the keys of earlier ones"
    types = set(getattr(parts.text_config, "layer_types", None) or ())
    if parts.active_stream is not None or "chunked_attention" in types or _has_indexer(parts.text_config):
        return "its attention selects keys by place in the sequence"
    return None


def _has_indexer(config: Any) -> bool:
    names = ("index_topk", "indexer_budget", "index_topk_blocks")
    return any(getattr(config, name, None) is not None for name in names)
