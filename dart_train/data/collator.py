"""Rows to one batch: sequences padded on one side, images joined as the processor of the model family joins them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from .encoder import Encoded
from .supervision import IGNORED, LOSS_WEIGHTS

_DUMMY_SIDE = 32


class Collator:
    """Works for any family. Whether a family groups images by row (Idefics3: [rows, images, ...]) or concatenates
    them ([images, ...], [patches, ...]) is read from what its processor makes of one row with two images."""

    def __init__(self, processor: Any, pad_to_multiple_of: int | None = None, side: str = "right") -> None:
        """side: where padding is added; "left" for generation."""
        tokenizer = processor.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.fill = {"input_ids": pad_id or 0, "labels": IGNORED}
        self.multiple, self.side = pad_to_multiple_of or 1, side
        self.by_row = _keys_by_row(processor)
        self.blank = _blank_row(processor)

    def __call__(self, rows: Sequence[Encoded | Any]) -> dict[str, Tensor]:
        """Skipped rows are left out. If none remains, one row without supervised tokens replaces them, so that this
        rank takes part in the step."""
        features = [row.features for row in rows if isinstance(row, Encoded)] or [self.blank]
        features = with_weights(features)
        names = list(dict.fromkeys(name for row in features for name in row))
        longest = max(row["input_ids"].shape[1] for row in features)
        length = -(-longest // self.multiple) * self.multiple
        return {name: self._join(name, features, length) for name in names}

    def _join(self, name: str, rows: list[dict[str, Tensor]], length: int) -> Tensor:
        given = [row[name] for row in rows if name in row]
        if all(row[name].shape == row["input_ids"].shape for row in rows if name in row) and len(given) == len(rows):
            return torch.cat([self._pad(tensor, length, self.fill.get(name, 0)) for tensor in given])
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in given), strict=True)]
        if name in self.by_row:
            empty = given[0].new_zeros(1, *(0 for _ in shape))
            given = [row.get(name, empty) for row in rows]
        return torch.cat([pad_to_shape(tensor, shape) for tensor in given])

    def _pad(self, tensor: Tensor, length: int, value: int) -> Tensor:
        missing = length - tensor.shape[1]
        return pad(tensor, (missing, 0) if self.side == "left" else (0, missing), value=value)


def with_weights(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Where one row has weights, all have: those of the others are 1 at every target."""
    if not any(LOSS_WEIGHTS in row for row in rows):
        return rows
    return [{LOSS_WEIGHTS: (row["labels"] != IGNORED).float(), **row} for row in rows]


def pad_to_shape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros at the end of every dimension but the first, up to `shape`."""
    missing = [new - old for new, old in zip(shape, tensor.shape[1:], strict=True)]
    return pad(tensor, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else tensor


def _keys_by_row(processor: Any) -> frozenset[str]:
    blank = Image.new("RGB", (64, 64))
    text = " ".join([processor.image_token] * 2)
    output = processor(text=[text], images=[[blank, blank]], return_tensors="pt")
    length = output["input_ids"].shape
    return frozenset(
        key for key, value in output.items() if value.shape != length and value.ndim > 1 and len(value) == 1
    )


def _blank_row(processor: Any) -> dict[str, Tensor]:
    features = dict(processor(text=["."], return_tensors="pt"))
    return {**features, "labels": torch.full_like(features["input_ids"], IGNORED)}


def dummy_inputs(processor: Any) -> dict[str, Tensor]:
    """The smallest image that the processor makes, without its tokens: the input of `attach_dummy_image`."""
    splits = hasattr(processor.image_processor, "do_image_splitting")  # it enlarges a small image and cuts it in tiles
    options = {"images_kwargs": {"do_image_splitting": False}} if splits else {}
    blank = Image.new("RGB", (_DUMMY_SIDE, _DUMMY_SIDE), (127, 127, 127))
    output = processor(text=[processor.image_token], images=[[blank]], return_tensors="pt", **options)
    length = output["input_ids"].shape
    return {name: value for name, value in output.items() if value.shape != length}
