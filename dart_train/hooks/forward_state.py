"""One forward pass under reduction: what is known before it, and what each stage kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..reduction import Observed, Reducer, SelectionContext
from ..reduction.batch_layout import BatchLayout
from ..reduction.kept_tokens import KeptTokens
from ..reduction.token_groups import TokenGroups

# What decoding must remember of the prefill; it lives on the cache object, and goes with it.

ATTRIBUTE = "_dart_train_memory"


@dataclass
class Memory:
    """After a prefill of `length` tokens, stage s holds valid[s] [B, P_s] of them in its layers' caches."""

    length: int
    valid: list[Tensor]

    @staticmethod
    def of(cache: Any) -> Memory | None:
        return getattr(cache, ATTRIBUTE, None)

    def short_valid(self, stage: int, mask: Tensor | None, new: int, held: int) -> Tensor:
        """[B, held + new] bool: which of a stage's cached and new tokens are real. `mask` is the full-length
        2-D mask; what came after the prefill is in it at the same places, counted from the prefill's end."""
        prefix = self.valid[stage]
        after = held + new - prefix.shape[1]
        if mask is None:
            tail = prefix.new_ones(prefix.shape[0], after)
        else:
            tail = mask[:, self.length : self.length + after].bool()
        return torch.cat([prefix, tail], 1)


def remember(cache: Any, memory: Memory, short_first_layer: bool) -> None:
    setattr(cache, ATTRIBUTE, memory)
    if short_first_layer and not hasattr(cache, "_dart_train_length"):
        _tell_full_length(cache)


def _tell_full_length(cache: Any) -> None:
    """With K = 0 layer 0 is short too, but generation takes its next position from layer 0's length."""
    held = cache.get_seq_length

    def get_seq_length(layer_idx: int = 0) -> int:
        memory = Memory.of(cache)
        dropped = memory.length - memory.valid[0].shape[1] if memory is not None and layer_idx == 0 else 0
        return int(held(layer_idx)) + dropped

    cache._dart_train_length = held
    cache.get_seq_length = get_seq_length


def cached_length(cache: Any, layer: int) -> int:
    """Tokens in a layer's own cache."""
    return int(getattr(cache, "_dart_train_length", cache.get_seq_length)(layer))


@dataclass
class ForwardState:
    """A prefill (or training step) when `batch` is there; a decoding step when only `memory` is."""

    mask: Tensor | None  # the full-length 2-D mask, cached tokens included
    memory: Memory | None = None
    past: int = 0
    batch: BatchLayout | None = None
    pools: TokenGroups | None = None
    grid_shapes: Sequence[Sequence[tuple[int, int]]] | None = None
    real: Tensor | None = None  # [B, L of the present stage]
    visual: Tensor | None = None
    labels: Tensor | None = None
    seen: Observed = field(default_factory=Observed)
    kept: list[KeptTokens] = field(default_factory=list)  # per stage, from the full sequence
    kept_visual: list[tuple[int, ...]] = field(default_factory=list)
    pivots: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # per stage: [R, P] places, which count
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def decoding(self) -> bool:
        return self.batch is None

    def reduce(self, reducer: Reducer, hidden: Tensor, scale: Tensor | None, seed: int) -> Tensor:
        """hidden [B, L, D] at layer K -> [B, S, D], and everything else follows it."""
        assert self.pools is not None and self.real is not None and self.visual is not None
        pools = self.pools
        counts = reducer.counts(pools)
        context = SelectionContext(pools, hidden, scale, self.seen, reducer.budgets(pools), self.grid_shapes, seed)
        keep = _checked(reducer, reducer.select(context), pools, counts)
        self.pivots.append(self._original(context.pivots))
        with torch.no_grad():
            content = reducer.merge_targets(context, keep)
        if content is not None:
            hidden = pools.scatter(hidden, merged(pools.gather(hidden), content, pools.valid))
        kept = KeptTokens.of(pools.keep_mask(self.real & ~self.visual, keep), pools.row_counts(counts))
        self.pools = pools.after_reduction(kept, keep, counts)
        self.visual, self.real = kept.gather(self.visual) & kept.valid, kept.valid
        self.kept.append(self.kept[-1].compose(kept) if self.kept else kept)
        self.kept_visual.append(tuple(counts))
        self.seen = Observed()
        return kept.gather(hidden)

    def _original(self, pivots: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Places of the present stage's sequence -> those of the full one."""
        if pivots is None or not self.kept or self.pools is None:
            return pivots
        return self.kept[-1].index[self.pools.rows].gather(1, pivots[0]), pivots[1]

    @property
    def is_noop(self) -> bool:
        """Nothing was dropped, and no padding either: the cache is what it would be without us."""
        return self.memory is None and not self.past and all(kept.keeps_all for kept in self.kept)

    def fork(self) -> ForwardState:
        """The same forward, its choices yet to be made, for another budget."""
        return replace(self, kept=[], kept_visual=[], pivots=[], memo={})

    def follow(self, x: Tensor, stage: int) -> Tensor:
        """Rotary embeddings [B or 1, L, d], or [3, B, L, d], gathered once a stage."""
        key = ("follow", stage, id(x))
        if key not in self.memo:
            self.memo[key] = (x, self.kept[stage].gather(x, -2, x.ndim - 3))
        short: Tensor = self.memo[key][1]
        return short

    def cache_state(self) -> Memory:
        """The prompt alone: drafts of assisted decoding in the first forward may yet be taken back."""
        assert self.batch is not None
        length = self.batch.shape[1]
        drafts = 0 if self.batch.prompt_length is None else max(0, length - self.batch.prompt_length)
        valid = [self._with_past(stage, kept) for stage, kept in enumerate(self.kept)]
        return Memory(self.past + length - drafts, [v[:, : v.shape[1] - drafts] for v in valid])

    def _with_past(self, stage: int, kept: KeptTokens) -> Tensor:
        return torch.cat([self.cached_valid_mask(stage), kept.valid], 1) if self.past else kept.valid

    def cached_valid_mask(self, stage: int) -> Tensor:
        """[B, cached tokens of this stage] bool."""
        assert self.real is not None
        if self.memory is not None:
            held = self.memory.valid[stage].shape[1] + self.past - self.memory.length
            return self.memory.short_valid(stage, self.mask, 0, held)
        if self.mask is not None:
            return self.mask[:, : self.past].bool()
        return self.real.new_ones(self.real.shape[0], self.past)


def merged(visual: Tensor, content: Tensor, valid: Tensor) -> Tensor:
    """visual [R, N, D], content [R, N] (where each token's content goes) -> each place's mean, differentiable.
    In float32: a sum of many tokens in bfloat16 stops growing."""
    weight = valid.float()
    into = content[..., None].expand_as(visual)
    total = torch.zeros(visual.shape, device=visual.device).scatter_add(1, into, visual.float() * weight[..., None])
    number = torch.zeros_like(weight).scatter_add(1, content, weight).clamp_min(1)
    return (total / number[..., None]).to(visual.dtype)


def _checked(reducer: Reducer, keep: Tensor, pools: TokenGroups, counts: Sequence[int]) -> Tensor:
    """A method that keeps another number than it said would silently misplace tokens: refuse it. On a GPU the
    check runs beside the rest, without a synchronisation."""
    if keep.shape != pools.valid.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"{type(reducer).__name__}.select gave {keep.dtype} {tuple(keep.shape)}; "
            f"expected bool {tuple(pools.valid.shape)}, like context.valid"
        )
    wanted = torch.tensor(counts).to(keep.device, non_blocking=True)
    right = ((keep & pools.valid).sum(1) == wanted).all() & ~(keep & ~pools.valid).any()
    if keep.device.type != "cpu":
        torch._assert_async(right)
    elif not right:
        raise ValueError(
            f"{type(reducer).__name__}.select kept {(keep & pools.valid).sum(1).tolist()} tokens a pool; its count() "
            f"promised {list(counts)}, all inside context.valid"
        )
    return keep
