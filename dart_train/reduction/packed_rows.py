"""Rows laid end to end as one sequence, without padding: where each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROW_LENGTHS = "row_lengths"  # the input of a model that marks packed rows: a list of ints


@dataclass(frozen=True)
class PackedRows:
    """The length of each row, known on the host. A tensor of these rows is [1, T, ...] with T their sum."""

    lengths: tuple[int, ...]
    _uploaded: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"row lengths {list(self.lengths)}: expected at least one row, each of at least one token")

    @classmethod
    def of_positions(cls, positions: Tensor) -> PackedRows | None:
        """positions [T] on the host, a row starts where they do not grow. None: one row."""
        starts = [0, *(torch.diff(positions) <= 0).nonzero().flatten().add(1).tolist(), len(positions)]
        return None if len(starts) == 2 else cls(tuple(b - a for a, b in pairwise(starts)))

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @cached_property
    def number(self) -> Tensor:
        """[T] long on the host: the row of each token."""
        return torch.repeat_interleave(torch.arange(len(self.lengths)), torch.tensor(self.lengths))

    @cached_property
    def place(self) -> Tensor:
        """[T] long on the host: the place of each token in its row."""
        return torch.arange(self.total) - torch.tensor(self.starts)[self.number]

    def on(self, device: torch.device, what: str) -> Tensor:
        """`starts`, `number`, `place` or `cu_seq_lens` on a device, without waiting for it."""
        if (device, what) not in self._uploaded:
            found = torch.tensor([0, *accumulate(self.lengths)]) if what == "cu_seq_lens" else getattr(self, what)
            found = torch.as_tensor(found, dtype=torch.int32 if what == "cu_seq_lens" else torch.long)
            self._uploaded[device, what] = found.to(device, non_blocking=True)
        tensor: Tensor = self._uploaded[device, what]
        return tensor

    def unpack(self, x: Tensor, fill: int | bool = 0) -> Tensor:
        """[1, T, ...] -> [B, longest, ...], padded on the right."""
        return pad_sequence(list(x[0].split(self.lengths)), batch_first=True, padding_value=fill)

    def pack(self, x: Tensor, rows_at: int = 0) -> Tensor:
        """The inverse: rows at dimension `rows_at` and their places at the next one. [B, L, ...] -> [1, T, ...]."""
        index = (slice(None),) * rows_at + (self.on(x.device, "number"), self.on(x.device, "place"))
        return x[index].unsqueeze(rows_at)

    def real(self) -> Tensor:
        """[B, longest] bool on the host: where the unpacked rows have tokens."""
        return torch.arange(self.longest) < torch.tensor(self.lengths)[:, None]

    def with_lengths(self, lengths: Sequence[int]) -> PackedRows:
        return replace(self, lengths=tuple(lengths), _uploaded={})
