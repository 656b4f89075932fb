"""What a reduced forward returns: its states, at full length or compact, and the loss of labels that follow the kept
tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reduction.batch_layout import IGNORED, BatchLayout
from ..reduction.kept_tokens import KeptTokens
from ..reduction.packed_rows import PackedRows
from ..reduction.token_groups import upload
from .forward_state import ForwardState


@dataclass(frozen=True)
class SupervisedTargets:
    """Supervised positions only: where their logits come from, and what they should be. All [1, M]."""

    rows: Tensor
    slots: Tensor
    labels: Tensor

    @classmethod
    def of(
        cls, layout: BatchLayout, kept: KeptTokens, labels: Tensor, packed: PackedRows | None = None
    ) -> SupervisedTargets | None:
        """None when visual tokens are supervised (then how many remain is not known on the host). packed: the rows of
        the layout are laid end to end in `kept` and `labels`."""
        if bool((layout.supervised & layout.visual).any()):
            return None
        first = layout.real & (layout.real.cumsum(1) == 1)
        rows, places = (layout.supervised & ~first).nonzero(as_tuple=True)  # on the host
        if packed is not None:
            rows, places = torch.zeros_like(rows), torch.tensor(packed.starts)[rows] + places
        rows, places = upload(rows, labels.device), upload(places, labels.device)
        padding = (~kept.valid).sum(1, keepdim=True)
        slot = kept.mask().long().cumsum(1) - 1 + padding
        return cls(rows[None], slot[rows, places][None] - 1, labels[rows, places][None])

    def gather(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, D] -> [1, M, D]: the state before each target, which predicts it."""
        return hidden[self.rows[0], self.slots[0]][None]


def shape_output(state: ForwardState | None, states: Tensor, compact: bool) -> tuple[Tensor, SupervisedTargets | None]:
    """The states that the head runs on. Compact with labels: those of supervised positions only."""
    if state is None or not state.reduced or states.shape[1] != state.kept.length:  # the last state alone
        return states, None
    if not compact:
        return state.kept.expand(states), None
    plan = state.plan
    if plan.labels is None or plan.layout is None:
        return states, None
    targets = SupervisedTargets.of(plan.layout, state.kept, plan.labels, plan.packed)
    return (states, None) if targets is None else (targets.gather(states), targets)


def expand_hidden_states(state: ForwardState, output: Any, starts: Sequence[int], several_streams: bool) -> None:
    """output_hidden_states=True: entry i > 0 is the output of layer i - 1, the last one after the final norm; entry
    0 is the input of layer 0, which a reduction at K = 0 has shortened. starts: K of each stage."""
    entries = getattr(output, "hidden_states", None)
    if not entries:
        return
    expanded = []
    for number, entry in enumerate(entries):
        stages = sum(start < max(number, 1) for start in starts)
        if stages and entry is not None:
            kept, several = state.stages[stages - 1].kept, entry.ndim == 4 and several_streams
            entry = torch.stack([kept.expand(one) for one in entry]) if several else kept.expand(entry)
        expanded.append(entry)
    output.hidden_states = tuple(expanded)


def compact_labels(kept: KeptTokens, labels: Tensor, rows: PackedRows | None = None) -> Tensor:
    """[B, S]. A slot whose predecessor is padding, or of another of the packed rows, is not a target: nothing predicts
    it."""
    predicted = kept.valid.clone()
    predicted[:, 1:] &= kept.valid[:, :-1]
    if rows is not None:
        predicted = predicted.index_fill(1, rows.on(predicted.device, "starts"), False)
    return kept.gather(labels).masked_fill(~predicted, IGNORED)


def full_labels(kept: KeptTokens, labels: Tensor, rows: PackedRows | None = None) -> Tensor:
    """[B, L]. What is not a target in the short sequence is not one here: dropped tokens, and a row's first one."""
    here = kept.mask()
    if rows is not None:
        return labels.masked_fill(~here.index_fill(1, kept.index[0, rows.on(here.device, "starts")], False), IGNORED)
    return labels.masked_fill(~(here & (here.long().cumsum(1) > 1)), IGNORED)


class ReducedLoss:
    """Replaces the model's loss function, and calls it with the labels that match the logits."""

    def __init__(self, original: Callable[..., Tensor], compact: bool) -> None:
        self.original, self.compact = original, compact
        self.enabled = True
        self.reset()

    def reset(self) -> None:
        """Outside of a reduced forward the loss is the model's own."""
        self.prepare(None, None, with_teacher=False)

    def prepare(
        self,
        kept: KeptTokens | None,
        targets: SupervisedTargets | None,
        with_teacher: bool,
        rows: PackedRows | None = None,
    ) -> None:
        """with_teacher: the second half of the logits is the teacher's and has no part in the loss. rows: the packed
        rows of the short sequence."""
        self.kept, self.targets, self.with_teacher, self.rows = kept, targets, with_teacher, rows

    def __call__(self, logits: Tensor, labels: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        kept, targets = self.kept, self.targets
        if not self.enabled:
            return logits.new_zeros(())
        if self.with_teacher:
            logits = logits[: len(logits) // 2]
        if kept is None or labels is None:
            return self.original(logits, labels, *args, **kwargs)
        if targets is not None:
            return self.original(logits, labels, *args, shift_labels=targets.labels, **kwargs)
        if kwargs.get("shift_labels") is not None:
            raise ValueError("shift_labels came with a reduction: give labels; they are shifted after the selection")
        labels = (compact_labels if self.compact else full_labels)(kept, labels, self.rows)
        return self.original(logits, labels, *args, **kwargs)
