"""What leaves the model: full length for whoever need not know, short for our own training; the loss of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reduction.batch_layout import IGNORED, BatchLayout
from ..reduction.kept_tokens import KeptTokens
from ..reduction.token_groups import upload


@dataclass(frozen=True)
class Targets:
    """Supervised positions only: where their logits come from, and what they should be. Both [1, M]."""

    rows: Tensor
    slots: Tensor
    labels: Tensor

    @classmethod
    def of(cls, batch: BatchLayout, kept: KeptTokens, labels: Tensor) -> Targets | None:
        """None when visual tokens are supervised (then how many remain is not known on the host)."""
        if bool((batch.supervised & batch.visual).any()):
            return None
        first = batch.real & (batch.real.cumsum(1) == 1)
        rows, places = (batch.supervised & ~first).nonzero(as_tuple=True)  # on the host
        rows, places = upload(rows, labels.device), upload(places, labels.device)
        padding = (~kept.valid).sum(1, keepdim=True)
        slot = kept.mask().long().cumsum(1) - 1 + padding
        return cls(rows[None], slot[rows, places][None] - 1, labels[rows, places][None])

    def states(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, D] -> [1, M, D]: each target's predecessor."""
        return hidden[self.rows[0], self.slots[0]][None]


def compact_labels(kept: KeptTokens, labels: Tensor) -> Tensor:
    """[B, S]. A slot whose predecessor is padding is no target: nothing predicts it."""
    predicted = kept.valid.clone()
    predicted[:, 1:] &= kept.valid[:, :-1]
    return kept.gather(labels).masked_fill(~predicted, IGNORED)


def full_labels(kept: KeptTokens, labels: Tensor) -> Tensor:
    """[B, L]. What is no target in the short sequence is none here: dropped tokens, and a row's first one."""
    here = kept.mask()
    return labels.masked_fill(~(here & (here.long().cumsum(1) > 1)), IGNORED)


class Loss:
    """Stands before the model's loss function."""

    def __init__(self, original: Callable[..., Tensor], short: bool) -> None:
        self.original, self.short = original, short
        self.kept: KeptTokens | None = None
        self.targets: Targets | None = None
        self.twice = False
        self.wanted = True

    def expect(self, kept: KeptTokens | None, targets: Targets | None, twice: bool = False) -> None:
        """twice: a companion's logits come behind, and have no part in the loss."""
        self.kept, self.targets, self.twice = kept, targets, twice

    def __call__(self, logits: Tensor, labels: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        kept, targets = self.kept, self.targets
        if not self.wanted:
            return logits.new_zeros(())
        if self.twice:
            logits = logits[: len(logits) // 2]
        if kept is None or labels is None:
            return self.original(logits, labels, *args, **kwargs)
        if targets is not None:
            return self.original(logits, labels, *args, shift_labels=targets.labels, **kwargs)
        if kwargs.get("shift_labels") is not None:
            raise ValueError("shift_labels came with a reduction: give labels, they are shifted after the choice")
        labels = compact_labels(kept, labels) if self.short else full_labels(kept, labels)
        return self.original(logits, labels, *args, **kwargs)
