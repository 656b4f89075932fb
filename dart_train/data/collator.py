"""What `attach_dummy_image` shows to the vision tower: the smallest picture that the processor makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from .encoder import Encoded
from .truncation import IGNORED

# Rows of one batch together: sequences padded on one side, pictures joined as the family's processor joins them.


class Collator:
    """Knows no family by name. Whether a family lines pictures up by row (Idefics3: [rows, pictures, ...]) or all
    in one line ([pictures, ...], [patches, ...]) shows in what its processor makes of one row with two pictures."""

    def __init__(self, processor: Any, pad_to_multiple_of: int | None = None, side: str = "right") -> None:
        """side: where padding goes; on the left where answers are to be written behind the rows."""
        tokenizer = processor.tokenizer
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.fill = {"input_ids": pad_id or 0, "labels": IGNORED}
        self.multiple, self.side = pad_to_multiple_of or 1, side
        self.by_row = _keys_by_row(processor)
        self.blank = _blank(processor)

    def __call__(self, rows: Sequence[Encoded | Any]) -> dict[str, Tensor]:
        """Rows that were skipped leave no trace; where none is left, one row that nothing is learnt from stands in,
        so that this rank takes part in the step."""
        features = [row.features for row in rows if isinstance(row, Encoded)] or [self.blank]
        names = list(dict.fromkeys(name for row in features for name in row))
        longest = max(row["input_ids"].shape[1] for row in features)
        length = -(-longest // self.multiple) * self.multiple
        return {name: self._joined(name, features, length) for name in names}

    def _joined(self, name: str, rows: list[dict[str, Tensor]], length: int) -> Tensor:
        given = [row[name] for row in rows if name in row]
        if all(row[name].shape == row["input_ids"].shape for row in rows if name in row) and len(given) == len(rows):
            return torch.cat([self._padded(tensor, length, self.fill.get(name, 0)) for tensor in given])
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in given), strict=True)]
        if name in self.by_row:
            empty = given[0].new_zeros(1, *(0 for _ in shape))
            given = [row.get(name, empty) for row in rows]
        return torch.cat([_grown(tensor, shape) for tensor in given])

    def _padded(self, tensor: Tensor, length: int, value: int) -> Tensor:
        missing = length - tensor.shape[1]
        return pad(tensor, (missing, 0) if self.side == "left" else (0, missing), value=value)


def _grown(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros behind every dimension but the first, up to `shape`."""
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


def _blank(processor: Any) -> dict[str, Tensor]:
    features = dict(processor(text=["."], return_tensors="pt"))
    return {**features, "labels": torch.full_like(features["input_ids"], IGNORED)}


_SIDE = 32


def dummy_inputs(processor: Any) -> dict[str, Tensor]:
    """Everything that the processor makes of one small picture, beside its tokens."""
    splits = hasattr(processor.image_processor, "do_image_splitting")  # a small picture is blown up and cut in tiles
    options = {"images_kwargs": {"do_image_splitting": False}} if splits else {}
    blank = Image.new("RGB", (_SIDE, _SIDE), (127, 127, 127))
    output = processor(text=[processor.image_token], images=[[blank]], return_tensors="pt", **options)
    length = output["input_ids"].shape
    return {name: value for name, value in output.items() if value.shape != length}
