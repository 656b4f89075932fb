"""The groups of a batch as dense tensors: one row per group, so that every method is plain batched algebra."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .batch_layout import BatchLayout, ImageSpans, Per
from .kept_tokens import KeptTokens
from .packed_rows import PackedRows


@dataclass(frozen=True)
class TokenGroups:
    """R groups of at most N visual tokens in a sequence of length L; sizes are known on the host."""

    rows: Tensor  # [R] long: the sample of each group; of packed rows always 0, the one sequence that there is
    slots: Tensor  # [R, N] long: positions of its visual tokens, in order
    valid: Tensor  # [R, N] bool
    prompt: Tensor  # [R, L] bool: text that may serve as a pivot
    last: Tensor  # [R] long: the last prompt token
    seed: Tensor  # [R] long: for random choices; decided by the prompt alone
    row_of: tuple[int, ...]
    sizes: tuple[int, ...]
    original: tuple[int, ...]  # sizes before any earlier stage: ratios are ratios of these
    prompt_sizes: tuple[int, ...]
    kept_text: tuple[int, ...]  # [B] tokens of each sample that no method may drop
    length: int  # L
    spans: tuple[ImageSpans, ...] | None = None  # positions of each group; None after an earlier stage
    packed: PackedRows | None = None  # the samples are rows of one sequence: slots, prompt and last count in it

    @classmethod
    def of(cls, batch: BatchLayout, per: Per, packed: PackedRows | None = None) -> TokenGroups | None:
        """On the host; None when there is no visual token at all. packed: the samples of `batch`, which are padded
        on the right there, are rows of one sequence."""
        groups = batch.groups(per)
        if not groups:
            return None
        widest = max(group.size for group in groups)
        slots = torch.zeros(len(groups), widest, dtype=torch.long)
        valid = torch.zeros(len(groups), widest, dtype=torch.bool)
        for r, group in enumerate(groups):
            slots[r, : group.size] = group.positions()
            valid[r, : group.size] = True
        rows = torch.tensor([group.row for group in groups])
        prompt = torch.stack([batch.prompt_of(group) for group in groups])
        ordinal = torch.tensor(_ordinals([group.row for group in groups]))
        sizes = tuple(group.size for group in groups)
        found = cls(
            rows=rows,
            slots=slots,
            valid=valid,
            prompt=prompt,
            last=torch.tensor([batch.last_of(group) for group in groups]),
            seed=batch.fingerprint[rows] + ordinal * 7919,
            row_of=tuple(group.row for group in groups),
            sizes=sizes,
            original=sizes,
            prompt_sizes=tuple(prompt.sum(1).tolist()),
            kept_text=tuple((batch.real & ~batch.visual).sum(1).tolist()),
            length=batch.shape[1],
            spans=tuple(group.spans for group in groups),
        )
        return found if packed is None else found._laid_end_to_end(packed)

    @property
    def sequence_of(self) -> tuple[int, ...]:
        """`rows` on the host."""
        return self.row_of if self.packed is None else (0,) * len(self.row_of)

    def _laid_end_to_end(self, packed: PackedRows) -> TokenGroups:
        starts = torch.tensor([packed.starts[row] for row in self.row_of])
        prompt = torch.zeros(len(starts), packed.total, dtype=torch.bool)
        for group, row in enumerate(self.row_of):
            first, length = packed.starts[row], packed.lengths[row]
            prompt[group, first : first + length] = self.prompt[group, :length]
        moved = zip(self.spans or (), starts.tolist(), strict=True)
        return replace(
            self,
            rows=torch.zeros_like(self.rows),
            slots=(self.slots + starts[:, None]).masked_fill(~self.valid, 0),
            prompt=prompt,
            last=self.last + starts,
            length=packed.total,
            spans=tuple(tuple((start + first, stop + first) for start, stop in spans) for spans, first in moved),
            packed=packed,
        )

    def seen_by(self, real: Tensor, groups: Tensor | None = None) -> Tensor:
        """real [B, L] -> [R, L] bool: the real tokens of each group's own sample, or of those of `groups` [P]."""
        rows = self.rows if groups is None else self.rows[groups]
        if self.packed is None:
            return real[rows]
        samples = upload(torch.tensor(self.row_of), real.device)
        samples = samples if groups is None else samples[groups]
        return real & (self.packed.on(real.device, "number") == samples[:, None])

    def to(self, device: torch.device) -> TokenGroups:
        if device == self.rows.device:
            return self
        names = ("rows", "slots", "valid", "prompt", "last", "seed")
        there: dict[str, Any] = {name: upload(getattr(self, name), device) for name in names}
        return replace(self, **there)

    def gather(self, x: Tensor) -> Tensor:
        """x [B, L, ...] at the visual tokens of each group: [R, N, ...]."""
        return x[self.rows[:, None], self.slots]

    def scatter(self, x: Tensor, values: Tensor) -> Tensor:
        """x [B, L, ...] with `values` [R, N, ...] written where there is a visual token; differentiable."""
        flat = self.rows[:, None] * x.shape[1] + self.slots
        spare = x.shape[0] * x.shape[1]  # slots that are padding write to one extra row, which is cut off again
        flat = flat.masked_fill(~self.valid, spare).flatten()
        long = torch.cat([x.flatten(0, 1), x.new_zeros(1, *x.shape[2:])])
        return long.index_copy(0, flat, values.flatten(0, 1).to(x.dtype))[:spare].view_as(x)

    def keep_mask(self, text: Tensor, keep: Tensor) -> Tensor:
        """[B, L]: what is kept, from text [B, L] (kept as it is) and keep [R, N]."""
        return self.scatter(text.to(torch.uint8), (keep & self.valid).to(torch.uint8)).bool()

    def row_counts(self, kept: Sequence[int]) -> list[int]:
        """How many tokens each sample keeps when its groups keep `kept`."""
        counts = list(self.kept_text)
        for row, number in zip(self.row_of, kept, strict=True):
            counts[row] += number
        return counts

    def after_reduction(self, reduction: KeptTokens, keep: Tensor, kept: Sequence[int]) -> TokenGroups:
        """The same groups in the short sequence: for the next stage."""
        order = torch.argsort(keep.logical_not().to(torch.uint8), dim=1, stable=True)[:, : max(kept)]
        padding = (~reduction.valid).sum(1, keepdim=True)
        place = (reduction.mask().long().cumsum(1) - 1 + padding).clamp_min(0)  # [B, L] -> short position
        prompt = self.prompt.gather(1, reduction.index[self.rows])  # text is kept: padding points at none
        packed = None if self.packed is None else self.packed.with_lengths(self.row_counts(kept))
        return replace(
            self,
            slots=self.gather(place).gather(1, order),
            valid=(keep & self.valid).gather(1, order),
            prompt=prompt,
            last=place[self.rows, self.last],
            sizes=tuple(kept),
            length=reduction.length,
            spans=None,
            packed=packed,
        )


def _ordinals(rows: Sequence[int]) -> list[int]:
    """The number of each group within its sample, from 0."""
    return [rows[:i].count(row) for i, row in enumerate(rows)]


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Copies `x` to the device without waiting for it."""
    return x.to(device, non_blocking=True)
