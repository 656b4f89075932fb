"""DART (arXiv 2502.11494): duplication matters more than importance.

1. Pivots: the few image tokens and prompt tokens with the largest L1 norm of layer K-1's keys, after the rotary
   embedding.
2. Similarity: cosine of layer K's input, under the final norm's weight, between every pivot and every visual token.
3. Each pivot in turn takes its share of the budget: the visual tokens least similar to it that are not taken yet.

The image pivots and what the pivots took are kept; duplicates of the pivots are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from ..base import Reducer, check_choice, check_int_at_least, topk_indices_stable
from ..context import Score, SelectionContext, per_group_tensor

Pivot = Literal["key_max", "key_min", "value_max", "value_min", "attention_max", "attention_min", "random"]
PIVOTS = ("key_max", "key_min", "value_max", "value_min", "attention_max", "attention_min", "random")
REQUIRED = {
    "key": frozenset({"keys"}),
    "value": frozenset({"values"}),
    "attention": frozenset({"attention"}),
    "random": frozenset[str](),
}


@dataclass(frozen=True, kw_only=True)
class DART(Reducer):
    """A few pivots, and the visual tokens least similar to them.

    image_pivots, text_pivots: numbers of pivots among the image tokens and the prompt tokens.
    pivot: the score that they have the highest or lowest of.
    rule: `exact` keeps exactly the budget, pivots counted. `paper` reproduces the released code, where image pivots
    come on top of quotas of budget // 8: "64" keeps 68.
    The released code visits pivots in the order of a Python set; here image pivots by score, then text.
    """

    name: ClassVar[str] = "dart"
    requires: ClassVar[frozenset[str]] = frozenset({"keys"})

    image_pivots: int = 4
    text_pivots: int = 4
    pivot: Pivot = "key_max"
    rule: Literal["exact", "paper"] = "exact"

    @torch.no_grad()
    def select(self, context: SelectionContext) -> Tensor:
        # 1. Pivots. A group with few tokens has fewer than there are columns: the `is_...` masks mark those that count.
        kind, _, side = self.pivot.partition("_")
        score, sign = cast(Score, kind), -1.0 if side == "min" else 1.0
        image = topk_indices_stable(sign * context.visual(score), context.valid, max(1, self.image_pivots))
        text = topk_indices_stable(sign * context.score(score), context.groups.prompt, self.text_pivots)
        image_counts, quotas = self._quotas(context, columns=image.shape[1])
        is_image_pivot = (
            torch.arange(image.shape[1], device=image.device) < per_group_tensor(image_counts, image)[:, None]
        )
        is_text_pivot = context.groups.prompt.gather(1, text)
        keep = torch.zeros_like(context.valid).scatter(1, image, is_image_pivot)
        pivots = torch.cat([context.groups.slots.gather(1, image), text], 1)  # [R, P] positions in the sequence
        context.pivots = pivots, torch.cat([is_image_pivot, is_text_pivot], 1)

        # 2. Similarity [R, P, N], and 3. each pivot takes the least similar ones.
        return take_least_similar(context.cosine(pivots), keep, context.valid, quotas)

    def count(self, size: int, budget: int, prompt: int) -> int:
        if self.rule == "exact":
            return min(size, budget)
        images, texts = self._pivot_counts(size, budget, prompt)
        return min(size, images + self._paper_quota(budget) * (images + texts))

    def required_inputs(self) -> frozenset[str]:
        return REQUIRED[self.pivot.split("_")[0]]

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

    def _pivot_counts(self, size: int, budget: int, prompt: int) -> tuple[int, int]:
        """Image and text pivots of a group. With no text after the image, an image pivot must serve."""
        texts = min(self.text_pivots, prompt)
        wanted = self.image_pivots if self.image_pivots + texts else 1
        limit = size if self.rule == "paper" else min(size, budget)
        return min(wanted, limit), texts

    def _paper_quota(self, budget: int) -> int:
        return budget // (self.image_pivots + self.text_pivots)

    def _quotas(self, context: SelectionContext, columns: int) -> tuple[list[int], list[list[int]]]:
        """Of each group, on the host: its number of image pivots, and how many tokens each pivot takes. The first
        `columns` quotas are those of image pivots, then come those of text pivots; 0 where a group has fewer."""
        image_counts, quotas = [], []
        for size, budget, prompt in zip(
            context.groups.sizes, context.budgets, context.groups.prompt_sizes, strict=True
        ):
            images, texts = self._pivot_counts(size, budget, prompt)
            left, pivots = self.count(size, budget, prompt) - images, images + texts
            if self.rule == "paper":
                takes = [self._paper_quota(budget)] * pivots
            else:
                takes = [left // pivots + (i < left % pivots) for i in range(pivots)]
            row = [*takes[:images], *[0] * (columns - images), *takes[images:]]
            image_counts.append(images)
            quotas.append([*row, *[0] * (columns + self.text_pivots - len(row))])
        return image_counts, quotas


def take_least_similar(similarity: Tensor, keep: Tensor, valid: Tensor, quotas: list[list[int]]) -> Tensor:
    """similarity [R, P, N] to the pivots, keep [R, N] the image pivots -> keep with every quota taken.

    A loop over the P pivots only, none over tokens, and nothing is read back from the device.
    """
    free, quota = valid & ~keep, per_group_tensor(quotas, similarity)
    orders = torch.argsort(similarity, dim=2, stable=True)
    for p, order in enumerate(orders.unbind(1)):
        waiting = free.gather(1, order)
        left = waiting & (waiting.cumsum(1) > quota[:, p, None])
        free = free.scatter(1, order, left)
    return valid & ~free
