"""A selection that is trained: a scorer decides a share of the budget, DART's diversity the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Reducer, check_choice, check_int_at_least, check_unit_interval, topk_indices_stable, topk_mask
from ..context import ScoredChoice, SelectionContext, per_group_tensor
from ..scorer import Guidance, TokenScorer
from .dart import DART

_CANDIDATES = 4  # tokens that diversity looks at, in multiples of the largest budget


@dataclass(frozen=True, kw_only=True)
class Learned(Reducer):
    """The scorer (`reduction/scorer.py`) is a submodule of the model, trained with it or alone, and saved with it.

    share: of the budget that the scorer decides. The rest is DART's without text pivots, which does not look at the
    prompt, so that it serves a later question of the same conversation too. 1.0: the scorer decides alone.
    guidance: whether the scorer looks at the prompt.
    diversity: what a token's score loses for its similarity to a token of higher score. 0.0: the scores alone.
    """

    name: ClassVar[str] = "learned"
    requires: ClassVar[frozenset[str]] = frozenset({"scorer"})

    share: float = 0.25
    guidance: Guidance = "prompt"
    diversity: float = 0.0
    image_pivots: int = 4

    def problems(self) -> list[str | None]:
        return [
            *super().problems(),
            check_unit_interval("share", self.share),
            check_choice("guidance", self.guidance, ("prompt", "none")),
            None if isinstance(self.diversity, int | float) and self.diversity >= 0 else "diversity: expected >= 0",
            check_int_at_least("image_pivots", self.image_pivots, 1),
        ]

    def required_inputs(self) -> frozenset[str]:
        return self.requires | ({"keys"} if self.share < 1 else set())

    def make_scorer(self, width: int) -> TokenScorer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.layer)  # every rank, and every new attachment, starts from the same weights
            return TokenScorer(width, self.guidance)

    def select(self, context: SelectionContext) -> Tensor:
        if context.scorer is None and self.counts(context.groups) == list(context.groups.sizes):
            return context.valid  # a teacher at full tokens needs no scores
        scores = context.score_tokens()  # differentiable, for the scorer's losses
        counts = self.counts(context.groups)
        diverse = [self._diverse_part(count) for count in counts]
        scored = per_group_tensor([count - part for count, part in zip(counts, diverse, strict=True)], context.valid)
        with torch.no_grad():
            keep = torch.zeros_like(context.valid)
            if any(diverse):
                dart = DART(keep=self.keep, per=self.per, image_pivots=self.image_pivots, text_pivots=0)
                keep = dart.select(replace(context, budgets=diverse))
            free = context.valid & ~keep
            penalty = self._similarity_penalty(context, scores.detach(), free, max(counts)) if self.diversity else None
        if penalty is not None:
            scores = scores - penalty
        chosen = topk_mask(scores.detach(), free, scored)
        context.scored_choice = ScoredChoice(scores, free, chosen)
        return keep | chosen

    def _diverse_part(self, count: int) -> int:
        """DART's part of `count` tokens: at least one, where it has a share at all."""
        return 0 if self.share == 1 else min(count, max(1, count - round(self.share * count)))

    def _similarity_penalty(self, context: SelectionContext, scores: Tensor, free: Tensor, budget: int) -> Tensor:
        """scores [R, N] -> [R, N]: for each candidate its highest similarity to a candidate of higher score, times
        `diversity`; 0 for other tokens. One product of all candidates; no loop over the budget."""
        number = min(scores.shape[1], _CANDIDATES * budget)
        places = topk_indices_stable(scores, free, number)  # [R, M], the highest score first
        similarity = context.cosine(context.groups.slots.gather(1, places))  # [R, M, N]
        similarity = similarity.gather(2, places[:, None].expand(-1, number, -1))  # [R, M, M]
        higher = torch.ones(number, number, dtype=torch.bool, device=scores.device).triu(1)  # row scores higher
        closest = similarity.masked_fill(~higher, 0.0).amax(1).clamp_min(0.0)  # [R, M]
        return torch.zeros_like(scores).scatter(1, places, self.diversity * closest)
