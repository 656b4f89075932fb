"""One forward under reduction: its plan, what was observed in it, and what each stage kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..reduction import Observed, Reducer, SelectionContext
from ..reduction.batch_layout import Per
from ..reduction.kept_tokens import KeptTokens, average_merged
from ..reduction.packed_rows import PackedRows
from ..reduction.relaxation import straight_through
from ..reduction.token_groups import TokenGroups
from .batch_plan import BatchPlan
from .cache_state import CacheState
from .choices import RowChoices

Pivots = tuple[Tensor, Tensor]  # [R, P] positions, [R, P] bool: which of them count


@dataclass(frozen=True)
class TokenScores:
    """The scores of a trained scorer for the tokens that a stage can select from."""

    logits: Tensor  # [R, N], differentiable
    positions: Tensor  # [R, N] of the full sequence
    valid: Tensor  # [R, N] bool
    kept: Tensor | None = None  # [R, N] bool: those kept because of their scores


@dataclass(frozen=True)
class TaskGradient:
    """The loss of a forward reaches the scores of its selection, at a temperature and with a weight."""

    temperature: float
    weight: float


@dataclass(frozen=True)
class StageResult:
    """What one stage kept, in terms of the full sequence."""

    kept: KeptTokens
    visual_counts: tuple[int, ...]  # kept visual tokens of each group
    pivots: Pivots | None  # None: the method has none
    scores: TokenScores | None = None  # of a trained scorer
    rows: PackedRows | None = None  # of the short sequence, where rows are packed


@dataclass
class ForwardState:
    """groups, real [B, L] and visual [B, L] are those of the present stage: L shrinks with each stage."""

    plan: BatchPlan
    groups: TokenGroups | None = None
    real: Tensor | None = None
    visual: Tensor | None = None
    observed: Observed = field(default_factory=Observed)
    stages: list[StageResult] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)  # masks and rotary embeddings, made once a stage
    positions_from_mask: bool = False  # this forward's position ids were counted from the mask
    compact_places: Tensor | None = None  # [B, L]; set by a stage at layer 0 with compact positions
    chosen: RowChoices | None = None  # made by another forward: nothing is selected in this one

    @classmethod
    def start(cls, plan: BatchPlan) -> ForwardState:
        return cls(plan, plan.groups, plan.real, plan.visual)

    @property
    def decoding(self) -> bool:
        return self.plan.decoding

    @property
    def reduced(self) -> bool:
        """A prefill or training step in which a stage has run."""
        return not self.decoding and bool(self.stages)

    @property
    def kept(self) -> KeptTokens:
        """The kept tokens of the last stage so far."""
        return self.stages[-1].kept

    @property
    def is_noop(self) -> bool:
        """Nothing was dropped, and there is no padding: the cache is what the plain model would leave. After an earlier
        reduced prefill its state still holds: these tokens are found in the mask, like generated ones."""
        return all(stage.kept.keeps_all for stage in self.stages)

    def rows_of(self, stage: int) -> PackedRows | None:
        """The packed rows of the sequence that layers of this stage run on; None where rows are padded."""
        return None if self.decoding else self.stages[stage].rows

    def copy_for_teacher(self, per: Per | None = None) -> ForwardState:
        """The same forward before any selection, for another budget. What was observed so far holds for both. per:
        other groups than the student's."""
        fresh = ForwardState.start(self.plan)
        if per is not None and self.plan.layout is not None and self.plan.real is not None:
            groups = TokenGroups.of(self.plan.layout, per, self.plan.packed)
            fresh.groups = None if groups is None else groups.to(self.plan.real.device)
        fresh.observed = self.observed
        return fresh

    def reduce(
        self,
        reducer: Reducer,
        hidden: Tensor,
        scale: Tensor | None,
        seed: int,
        scorer: nn.Module | None = None,
        task: TaskGradient | None = None,
        active_stream: int | None = None,
    ) -> Tensor:
        """hidden [B, L, D] at layer K -> [B, S, D]; groups, real and visual are shortened alike. Where it has several
        streams, [streams, B, L, D], the active one is what tokens are selected by, and all follow."""
        assert self.groups is not None and self.real is not None and self.visual is not None
        groups, streams, states = self.groups, hidden.shape[0], hidden
        if active_stream is not None:
            states, hidden = hidden[active_stream], hidden.permute(1, 2, 0, 3).flatten(2)
        chosen = self._chosen_before(groups)
        counts = reducer.counts(groups) if chosen is None else chosen.sum(1).tolist()
        context = SelectionContext(
            groups, states, scale, self.observed, reducer.budgets(groups), self.plan.grid_shapes, seed, scorer=scorer
        )
        keep = _checked_selection(reducer, reducer.select(context), groups, counts) if chosen is None else chosen
        pivots = self._pivots_in_full_sequence(context.pivots)
        scores = self._token_scores(context)
        choice = context.scored_choice
        if task is not None and choice is not None and torch.is_grad_enabled():
            visual = straight_through(groups.gather(hidden), choice, task.temperature, task.weight)
            hidden = groups.scatter(hidden, visual)
        with torch.no_grad():
            targets = reducer.merge_targets(context, keep)
        if targets is not None:
            hidden = groups.scatter(hidden, average_merged(groups.gather(hidden), targets, groups.valid))
        lengths = groups.row_counts(counts)
        lengths = lengths if groups.packed is None else [sum(lengths)]
        kept = KeptTokens.of(groups.keep_mask(self.real & ~self.visual, keep), lengths)
        self.groups = groups.after_reduction(kept, keep, counts)
        self.visual, self.real = kept.gather(self.visual) & kept.valid, kept.valid
        if reducer.positions == "compact" and not kept.keeps_all:
            packed = groups.packed, self.groups.packed
            self.compact_places = _places_of_new_positions(kept, self.plan.real, *packed)
        from_full = self.kept.compose(kept) if self.stages else kept
        self.stages.append(StageResult(from_full, tuple(counts), pivots, scores, self.groups.packed))
        self.observed = Observed()
        hidden = kept.gather(hidden)
        return hidden if active_stream is None else hidden.unflatten(2, (streams, -1)).permute(2, 0, 1, 3)

    def _chosen_before(self, groups: TokenGroups) -> Tensor | None:
        """keep [R, N] bool of the next stage, where another forward has made the choice."""
        if self.chosen is None or self.plan.visual is None:
            return None
        masks, positions = self.chosen.masks(self.plan.visual), groups.slots
        if self.stages:
            positions = self.kept.index[groups.rows].gather(1, positions)
        return masks[:, len(self.stages)][groups.rows].gather(1, positions) & groups.valid

    def _pivots_in_full_sequence(self, pivots: Pivots | None) -> Pivots | None:
        if pivots is None or not self.stages or self.groups is None:
            return pivots
        return self.kept.index[self.groups.rows].gather(1, pivots[0]), pivots[1]

    def _token_scores(self, context: SelectionContext) -> TokenScores | None:
        if context.token_scores is None or self.groups is None:
            return None
        positions = self.groups.slots
        if self.stages:
            positions = self.kept.index[self.groups.rows].gather(1, positions)
        choice = context.scored_choice
        kept = None if choice is None else choice.kept
        return TokenScores(context.token_scores, positions, self.groups.valid, kept)

    def gather_rotary(self, x: Tensor, stage: int) -> Tensor:
        """Rotary embeddings [B or 1, L, d], or [3, B, L, d], gathered once a stage."""
        key = ("rotary", stage, id(x))
        if key not in self.memo:
            self.memo[key] = (x, self.kept_positions(stage).gather(x, -2, x.ndim - 3))
        short: Tensor = self.memo[key][1]
        return short

    def kept_positions(self, stage: int) -> KeptTokens:
        """Where the full sequence has the positions of the kept tokens: at these tokens; with compact positions, at
        earlier ones."""
        kept = self.stages[stage].kept
        if self.compact_places is None:
            return kept
        return replace(kept, index=self.compact_places.gather(1, kept.index))

    def cache_state(self) -> CacheState:
        """The cache of the prompt alone: drafts of assisted decoding in the first forward may be taken back."""
        layout, past = self.plan.layout, self.plan.past
        assert layout is not None
        length = layout.shape[1]
        drafts = 0 if layout.prompt_length is None else max(0, length - layout.prompt_length)
        valid, places = [], []
        for number in range(len(self.stages)):
            mask, place = self.cached_and_kept(number)
            valid.append(mask[:, : mask.shape[1] - drafts])
            places.append(place[:, : mask.shape[1] - drafts])
        return CacheState(past + length - drafts, valid, places, self.positions_from_mask)

    def cached_and_kept(self, stage: int) -> tuple[Tensor, Tensor]:
        """[B, tokens of this stage in the cache and in this forward]: bool, which are real, and long, their places in
        the full sequence."""
        plan, kept = self.plan, self.stages[stage].kept
        if not plan.past:
            return kept.valid, kept.index
        if plan.cache_state is not None:
            held = plan.cache_state.valid[stage].shape[1] + plan.past - plan.cache_state.length
            valid = plan.cache_state.valid_mask(stage, plan.attention_mask, 0, held)
            places = plan.cache_state.places_of(stage, held)
        else:
            places = torch.arange(plan.past, device=kept.index.device).expand(len(kept.index), -1)
            mask = plan.attention_mask
            valid = torch.ones_like(places, dtype=torch.bool) if mask is None else mask[:, : plan.past].bool()
        return torch.cat([valid, kept.valid], 1), torch.cat([places, kept.index + plan.past], 1)


def _places_of_new_positions(
    kept: KeptTokens, real: Tensor | None, before: PackedRows | None = None, after: PackedRows | None = None
) -> Tensor:
    """[B, L]: for each kept token, where the full sequence has its new position. The n-th kept token of a row gets the
    position of the row's n-th real token, of which padding on either side is not one. before, after: the packed rows of
    the long and of the short sequence."""
    assert real is not None
    number = (kept.mask().long().cumsum(1) - 1).clamp_min(0)
    if before is not None and after is not None:
        rows = before.on(number.device, "number")
        return number + (before.on(number.device, "starts") - after.on(number.device, "starts"))[rows]
    return torch.argsort(real.logical_not().to(torch.uint8), dim=1, stable=True).gather(1, number)


def _checked_selection(reducer: Reducer, keep: Tensor, groups: TokenGroups, counts: Sequence[int]) -> Tensor:
    """A method that keeps another number than its `count` would silently misplace tokens: refuse it. On a GPU the
    check runs asynchronously, without a synchronisation."""
    if keep.shape != groups.valid.shape or keep.dtype != torch.bool:
        raise ValueError(
            f"{type(reducer).__name__}.select gave {keep.dtype} {tuple(keep.shape)}; "
            f"expected bool {tuple(groups.valid.shape)}, like context.valid"
        )
    wanted = torch.tensor(counts).to(keep.device, non_blocking=True)
    right = ((keep & groups.valid).sum(1) == wanted).all() & ~(keep & ~groups.valid).any()
    if keep.device.type != "cpu":
        torch._assert_async(right)
    elif not right:
        raise ValueError(
            f"{type(reducer).__name__}.select kept {(keep & groups.valid).sum(1).tolist()} tokens a group; its count() "
            f"promised {list(counts)}, all inside context.valid"
        )
    return keep
