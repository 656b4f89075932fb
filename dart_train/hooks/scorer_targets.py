"""What trained scorers learn from: the attention that the model pays at full tokens.

It is computed next to the attention kernel, as FastV's row is: the rows of the last prompt token and of the first
tokens of the answer, mean over heads and over layers >= K.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..reduction.budget import Keep
from ..reduction.scorer import scorer_loss, top_overlap
from .engine import Engine
from .forward_state import ForwardState
from .observers import RecordingAttentionConfig, attention_row, remove_observer
from .scorers import layers_with_rows


class ScorerTraining:
    """Records attention in forwards that keep all tokens, and compares the scores of the same forward with it.

    answer_tokens: rows of attention from each answer, besides the last prompt token's. served: as in
    `with_scorer_loss`.
    """

    def __init__(self, engine: Engine, answer_tokens: int, served: Sequence[Keep] = ()) -> None:
        self.engine, self.answer_tokens, self.served = engine, answer_tokens, tuple(served)
        self.overlap: Tensor | None = None
        self.rows: dict[int, Tensor] = {}  # layer -> [R, S] attention of each group
        self.full: ForwardState | None = None  # the forward that kept all tokens
        self.paused = False  # the last forward reduced nothing
        self._queries: tuple[Any, ...] = ()

    def register_hooks(self) -> list[Any]:
        parts, eager = self.engine.parts, torch.compiler.disable
        handles = [parts.inner.register_forward_pre_hook(eager(self.on_inner_start), with_kwargs=True)]
        for layer in layers_with_rows(parts, min(self.engine.scorers)):
            hook = eager(functools.partial(self.on_attention_start, layer))
            handles.append(parts.attention(layer).register_forward_pre_hook(hook, with_kwargs=True))
            handles.append(parts.attention(layer).register_forward_hook(eager(remove_observer), always_call=True))
        return handles

    def on_inner_start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.rows, self.full, self._queries, self.overlap = {}, None, (), None
        self.paused = not self.engine.active

    def on_attention_start(self, layer: int, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        current = self.engine.running_pass
        state = current.state
        if state is None or state.decoding or not state.stages:
            return
        if any(reducer.keep != 1.0 for reducer in current.reducers):
            return
        self.full = state
        record = torch.compiler.disable(functools.partial(self._record, layer, state))
        module.config = RecordingAttentionConfig(module.config, record)

    @torch.no_grad()
    def _record(
        self, layer: int, state: ForwardState, module: nn.Module, query: Tensor, key: Tensor, scaling: Any, softcap: Any
    ) -> None:
        assert state.real is not None and state.groups is not None
        rows, places, groups, share = self._query_positions(state)
        window = getattr(module, "sliding_window", None)
        real = state.groups.seen_by(state.real, groups)
        found = attention_row(query.detach(), key.detach(), rows, places, real, scaling, softcap, window)
        total = found.new_zeros(len(state.groups.row_of), found.shape[1])
        self.rows[layer] = total.index_add(0, groups, found * share[:, None])

    def _query_positions(self, state: ForwardState) -> tuple[Any, ...]:
        """Of P rows of attention: their samples (on the host), positions [P], groups [P] and weights [P]."""
        if not self._queries:
            layout, groups = state.plan.layout, state.groups
            assert layout is not None and groups is not None
            of: list[int] = []
            offset: list[int] = []
            share: list[float] = []
            for number, group in enumerate(layout.groups(self.engine.reducers[0].per)):
                answer = layout.answers[group.row, group.end : group.end + self.answer_tokens]
                length = int(answer.long().cumprod(0).sum())
                of += [number] * (length + 1)
                offset += range(length + 1)
                share += [1 / (length + 1)] * (length + 1)
            device = groups.last.device
            index = torch.tensor(of).to(device, non_blocking=True)
            places = groups.last[index] + torch.tensor(offset).to(device, non_blocking=True)
            weights = torch.tensor(share).to(device, non_blocking=True)
            self._queries = [groups.sequence_of[n] for n in of], places, index, weights
        return self._queries

    def loss(self) -> Tensor:
        """Mean over stages of the KL divergence from the scores to the attention. On a rank whose batch has no image,
        a zero that reaches every weight of the scorers, as ZeRO and DDP need it."""
        state, full, engine = self.engine.last, self.full, self.engine
        if state is None or self.paused:
            return engine.idle_scorers.loss()
        if full is None or not self.rows:
            raise RuntimeError(
                "no forward kept all tokens, so there is no attention to learn from: set the budget to 1.0, or run the "
                "forward inside with_teacher(1.0)"
            )
        losses, overlaps = [], []
        for number, (reducer, stage) in enumerate(zip(engine.reducers, state.stages, strict=True)):
            if stage.scores is not None:
                rows = [row for layer, row in self.rows.items() if layer >= reducer.layer]
                target = _at_positions(torch.stack(rows).mean(0), full, stage.scores.positions)
                losses.append(scorer_loss(stage.scores.logits, target, stage.scores.valid))
                if self.served:
                    overlaps.append(top_overlap(stage.scores.logits, target, stage.scores.valid, self.served[number]))
        self.overlap = torch.stack(overlaps).mean() if overlaps else None
        return torch.stack(losses).mean()


def _at_positions(attention: Tensor, full: ForwardState, positions: Tensor) -> Tensor:
    """attention [R, S] over the slots of a forward that kept all tokens -> [R, N] at positions of the full sequence.
    Slots and positions differ by padding alone: slots are padded on the left."""
    assert full.groups is not None
    padding = (~full.kept.valid).sum(1, keepdim=True)
    slot = (full.kept.mask().long().cumsum(1) - 1 + padding).clamp_min(0)  # [B, L]
    return attention.gather(1, slot[full.groups.rows].gather(1, positions))
