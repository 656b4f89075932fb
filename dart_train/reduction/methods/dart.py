"""DART (arXiv 2502.11494): keep a few pivots, and the tokens least similar to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from ..base import Reducer, check_choice, check_int_at_least, topk_indices_stable
from ..context import Score, SelectionContext, per_group_tensor

PIVOTS = ("key_max", "key_min", "value_max", "value_min", "attention_max", "attention_min", "random")
NEEDS = {
    "key": frozenset({"keys"}),
    "value": frozenset({"values"}),
    "attention": frozenset({"attention"}),
    "random": frozenset[str](),
}


@dataclass(frozen=True, kw_only=True)
class DART(Reducer):
    """Pivots: image tokens and prompt tokens with the largest L1 norm of layer K-1's keys, after the rotary
    embedding. Each pivot in turn takes the visual tokens least similar to it (cosine of layer K's input under
    the final norm's weight) that are still there.

    rule: `exact` keeps exactly the budget, pivots counted. `paper` reproduces the released code, where image
    pivots come on top of quotas of budget // 8: "64" keeps 68.
    The released code visits pivots in the order of a Python set; here image pivots by score, then text.
    """

    name: ClassVar[str] = "dart"
    requires: ClassVar[frozenset[str]] = frozenset({"keys"})

    image_pivots: int = 4
    text_pivots: int = 4
    pivot: Literal["key_max", "key_min", "value_max", "value_min", "attention_max", "attention_min", "random"] = (
        "key_max"
    )
    rule: Literal["exact", "paper"] = "exact"

    def problems(self) -> list[str | None]:
        both = [self.image_pivots, self.text_pivots]
        none = all(isinstance(n, int) for n in both) and sum(both) == 0
        return [
            *super().problems(),
            check_int_at_least("image_pivots", self.image_pivots, 0),
            check_int_at_least("text_pivots", self.text_pivots, 0),
            check_choice("pivot", self.pivot, PIVOTS),
            check_choice("rule", self.rule, ("exact", "paper")),
            "image_pivots=0 and text_pivots=0: expected at least one pivot" if none else None,
        ]

    def required_inputs(self) -> frozenset[str]:
        return NEEDS[self.pivot.split("_")[0]]

    def count(self, size: int, budget: int, prompt: int) -> int:
        if self.rule == "exact":
            return min(size, budget)
        images, texts = self._pivot_counts(size, budget, prompt)
        return min(size, images + self._paper_quota(budget) * (images + texts))

    def _paper_quota(self, budget: int) -> int:
        return budget // (self.image_pivots + self.text_pivots)

    def _pivot_counts(self, size: int, budget: int, prompt: int) -> tuple[int, int]:
        """Image and text pivots of a pool. With no text behind the image, an image pivot must serve."""
        texts = min(self.text_pivots, prompt)
        wanted = self.image_pivots if self.image_pivots + texts else 1
        limit = size if self.rule == "paper" else min(size, budget)
        return min(wanted, limit), texts

    def _plan(self, context: SelectionContext, slots: int) -> tuple[list[int], list[list[int]]]:
        """Host numbers of each pool: its image pivots, and how many tokens each pivot takes; `slots` of the
        pivots are image pivots."""
        images, quotas = [], []
        for size, budget, prompt in zip(context.pools.sizes, context.budgets, context.pools.prompt_sizes, strict=True):
            n_image, n_text = self._pivot_counts(size, budget, prompt)
            takes = self._takes(self.count(size, budget, prompt) - n_image, budget, n_image + n_text)
            images.append(n_image)
            quotas.append([*takes[:n_image], *[0] * (slots - n_image), *takes[n_image:]])
        return images, [[*takes, *[0] * (slots + self.text_pivots - len(takes))] for takes in quotas]

    def _takes(self, wanted: int, budget: int, pivots: int) -> list[int]:
        """In the order of the visit."""
        if self.rule == "paper":
            return [self._paper_quota(budget)] * pivots
        return [wanted // pivots + (i < wanted % pivots) for i in range(pivots)]

    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        kind, _, side = self.pivot.partition("_")
        score, sign = cast(Score, kind), -1.0 if side == "min" else 1.0
        visual = sign * context.visual(score)
        own = topk_indices_stable(visual, context.valid, max(1, self.image_pivots))
        text = topk_indices_stable(sign * context.score(score), context.pools.prompt, self.text_pivots)
        n_image, quotas = self._plan(context, own.shape[1])
        chosen = torch.arange(own.shape[1], device=own.device) < per_group_tensor(n_image, own)[:, None]
        keep = torch.zeros_like(context.valid).scatter(1, own, chosen)
        pivots = torch.cat([context.pools.slots.gather(1, own), text], 1)
        similarity = context.cosine(pivots)
        meant = [chosen, context.pools.prompt.gather(1, text)]  # fewer, where a pool has fewer
        context.pivots = pivots, torch.cat(meant, 1)
        return take_least_similar(similarity, keep, context.valid, quotas)


def take_least_similar(similarity: Tensor, keep: Tensor, valid: Tensor, quotas: list[list[int]]) -> Tensor:
    """similarity [R, P, N] to the pivots, keep [R, N] the image pivots -> keep with every quota taken.

    A loop over the P pivots only, none over tokens, and nothing read back.
    """
    free, quota = valid & ~keep, per_group_tensor(quotas, similarity)
    orders = torch.argsort(similarity, dim=2, stable=True)
    for p, order in enumerate(orders.unbind(1)):
        waiting = free.gather(1, order)
        left = waiting & (waiting.cumsum(1) > quota[:, p, None])
        free = free.scatter(1, order, left)
    return valid & ~free
