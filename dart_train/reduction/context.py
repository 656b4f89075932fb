"""What a method may look at: the visual tokens of each group, their keys, the prompt, the image's grid."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .batch_layout import ImageSpans
from .token_groups import TokenGroups, upload

Score = Literal["key", "value", "attention", "random"]


@dataclass(frozen=True)
class ScoredChoice:
    """What a trained scorer decided: which of the candidates are kept."""

    scores: Tensor  # [R, N], differentiable
    candidates: Tensor  # [R, N] bool: tokens that nothing else had decided on
    kept: Tensor  # [R, N] bool, inside the candidates


@dataclass(frozen=True)
class Observed:
    """What was recorded in the attention of layer K-1; at K = 0 there is none and all is None."""

    keys: Tensor | None = None  # [B, H, L, d], after the rotary embedding and any key norm
    values: Tensor | None = None  # [B, H, L, d]
    attention: Tensor | None = None  # [R, L] of each group's last prompt token, mean over heads


@dataclass
class SelectionContext:
    """R groups, at most N visual tokens each, in B sequences of length L and width D."""

    pools: TokenGroups  # `groups` in this package; the constructor keeps the former names
    states: Tensor  # [B, L, D]: the input of layer K
    scale: Tensor | None  # [D]: what the final RMSNorm multiplies by; None: 1
    seen: Observed  # likewise `observed`
    budgets: Sequence[int]  # per group, on the host
    grid_shapes: Sequence[Sequence[tuple[int, int]]] | None = None  # per group: (rows, columns) of each tile
    seed: int = 0
    scores: dict[str, Tensor] = field(default_factory=dict)
    scorer: Callable[[Tensor, Tensor], Tensor] | None = None  # a trained one, for methods that require it
    token_scores: Tensor | None = None  # [R, N] what it returned, differentiable
    scored_choice: ScoredChoice | None = None  # set by a method that selects by it
    pivots: tuple[Tensor, Tensor] | None = None  # set by a method that has some: [R, P] positions, and which count

    @property
    def groups(self) -> TokenGroups:
        return self.pools

    @property
    def observed(self) -> Observed:
        return self.seen

    @property
    def valid(self) -> Tensor:
        """[R, N] bool."""
        return self.groups.valid

    @cached_property
    def budget(self) -> Tensor:
        """[R] long, on the device."""
        return per_group_tensor(self.budgets, self.valid)

    @cached_property
    def hidden(self) -> Tensor:
        """[R, N, D] float32, scaled as the final RMSNorm scales: what similarity is measured on."""
        return self.hidden_at(self.groups.slots)

    def hidden_at(self, positions: Tensor) -> Tensor:
        """positions [R, P] of the sequence -> [R, P, D] float32, scaled."""
        return self._scaled(self.states.detach()[self.groups.rows[:, None], positions])

    def _scaled(self, states: Tensor) -> Tensor:
        """The norm's division by a token's own size does not change a cosine; its weight does."""
        return states.float() if self.scale is None else states.float() * self.scale.to(states.device)

    def cosine(self, positions: Tensor) -> Tensor:
        """positions [R, P] of the sequence -> [R, P, N] float32: their similarity to every visual token (at padding:
        any number)."""
        mine = normalize(self.hidden_at(positions), dim=-1)
        if self.groups.spans is not None and mine.device.type == "cpu":
            return self._cosine_in_place(mine, self.groups.spans)
        length = _slice_length(self.states, self.groups.slots.shape[0] * self.states.shape[2])
        parts = self.groups.slots.split(length, 1)
        return torch.cat([_cosine(mine, self.hidden_at(slots)) for slots in parts], 2)

    @torch.no_grad()
    def _cosine_in_place(self, mine: Tensor, spans: Sequence[ImageSpans]) -> Tensor:
        """The same without gathering, from each group's own place: on a CPU the copies would take longer than the
        products. The norm's weight goes to the few pivots, squared to the tokens' squares."""
        states, width = self.states.detach(), self.states.shape[2]
        scale = mine.new_ones(width) if self.scale is None else self.scale.detach().float()
        out, square = mine.new_zeros(*mine.shape[:2], self.valid.shape[1]), scale * scale
        lengths, work = out.new_ones(out.shape[0], out.shape[2]), scratch_buffer(2, _slice_length(states, width), width)
        for group, (row, places) in enumerate(zip(self.groups.sequence_of, spans, strict=True)):
            pivots, first = mine[group] * scale, 0
            for part in (part for a, b in places for part in states[row, a:b].split(work.shape[1])):
                tokens = part if part.dtype == torch.float32 else work[0, : len(part)].copy_(part)
                stop = first + len(part)
                torch.mm(pivots, tokens.T, out=out[group, :, first:stop])
                torch.mul(tokens, tokens, out=work[1, : len(part)])
                torch.mv(work[1, : len(part)], square, out=lengths[group, first:stop])
                first = stop
        return out.div_(lengths.sqrt_().clamp_min_(1e-12)[:, None])

    def score(self, kind: Score) -> Tensor:
        """[R, L] float32: every position's score, as each group sees the sequence."""
        if kind not in self.scores:
            self.scores[kind] = getattr(self, f"_{kind}")().float()
        return self.scores[kind]

    def visual(self, kind: Score) -> Tensor:
        """[R, N]: the same score at the visual tokens."""
        return self.score(kind).gather(1, self.groups.slots)

    def score_tokens(self) -> Tensor:
        """[R, N] float32: the trained scorer's logits, differentiable in its weights and not in the states."""
        if self.scorer is None:
            raise ValueError("this method needs a trained scorer, which attach() puts on the model")
        states, groups = self.states.detach(), self.groups
        self.token_scores = self.scorer(groups.gather(states), states[groups.rows, groups.last])
        return self.token_scores

    def _key(self) -> Tensor:
        return self._l1(self.observed.keys)

    def _value(self) -> Tensor:
        return self._l1(self.observed.values)

    def _l1(self, heads: Tensor | None) -> Tensor:
        """L1 norm over all heads, in float32: in bfloat16, 576 norms take only 36 distinct values.

        Before the language model (K = 0) there is no key; the input embedding serves in its place.
        """
        tokens = (self.states[:, :, None] if heads is None else heads.transpose(1, 2)).detach()  # [B, L, H, d]
        if tokens.device.type != "cpu":
            return tokens.abs().sum((2, 3), dtype=torch.float32)[self.groups.rows]
        return torch.stack([_l1_of_row(row) for row in tokens])[self.groups.rows]

    def _attention(self) -> Tensor:
        if self.observed.attention is None:
            raise ValueError("attention scores need a layer to come from: use layer >= 1 for this method")
        return self.observed.attention

    def _random(self) -> Tensor:
        return self.uniform(0)

    def uniform(self, seed: int) -> Tensor:
        """[R, L] in [0, 1): a function of the seeds, the prompt and the token's place, hence the same on every
        rank, in every batch, and when a layer is recomputed under gradient checkpointing."""
        order = torch.arange(self.groups.length, device=self.valid.device)
        from_end = order[None] - self.groups.last[:, None]  # left padding moves both alike
        return _hash(from_end, self.groups.seed[:, None], self.seed + seed)


View = SelectionContext  # the former name


def _cosine(mine: Tensor, tokens: Tensor) -> Tensor:
    """mine [..., P, D] of length one, tokens [..., N, D] -> [..., P, N]. The product is divided, not the tokens:
    there are far fewer products."""
    norm = torch.linalg.vector_norm(tokens, dim=-1).clamp_min(1e-12)
    return mine @ tokens.transpose(-1, -2) / norm.unsqueeze(-2)


@torch.no_grad()
def _l1_of_row(tokens: Tensor) -> Tensor:
    """tokens [L, H, d] -> [L] float32, on a CPU."""
    norms = torch.empty(len(tokens))
    work = scratch_buffer(_slice_length(tokens, tokens[0].numel()), *tokens.shape[1:], dtype=tokens.dtype)
    for part, norm in zip(tokens.split(len(work)), norms.split(len(work)), strict=True):
        torch.sum(torch.abs(part, out=work[: len(part)]), (1, 2), dtype=torch.float32, out=norm)
    return norms


_kept = threading.local()


def scratch_buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory on the CPU to work in, this thread's own and always the same: to ask the system for a megabyte of fresh
    pages in every forward would take longer than the arithmetic in them."""
    size = math.prod(shape) * dtype.itemsize
    if getattr(_kept, "memory", None) is None or len(_kept.memory) < size:
        _kept.memory = torch.empty(size, dtype=torch.uint8)
    memory: Tensor = _kept.memory[:size]
    return memory.view(dtype).view(shape)


def _slice_length(x: Tensor, numbers: int) -> int:
    """How many places, of so many `numbers` each, to work on at a time: on a CPU in pieces that fit a core's cache."""
    return max(1, (1 << 18 if x.device.type == "cpu" else 1 << 26) // numbers)


def _hash(place: Tensor, seed: Tensor, extra: int) -> Tensor:
    """Integer mixing (multiply, xor-shift) of place and seed to [0, 1)."""
    x = (place + 1_000_003) * 2_654_435_761 + seed * 40_503 + extra * 69_069 + 12_345
    for shift, factor in ((15, 2_246_822_519), (13, 3_266_489_917), (16, 668_265_263)):
        x = ((x ^ (x >> shift)) * factor) & 0x7FFFFFFF
    return x.double() / 0x80000000


def per_group_tensor(numbers: Sequence[int] | Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """Host numbers [R] or [R, P] on the device of `like`, without waiting for it."""
    return upload(torch.tensor(numbers, dtype=torch.long), like.device)
