"""DART (arXiv 2502.11494): keep a few pivots, and the tokens least similar to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from .base import Reducer, check_choice, check_whole
from .view import Score, View, per_pool

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
    needs: ClassVar[frozenset[str]] = frozenset({"keys"})

    image_pivots: int = 4
    text_pivots: int = 4
    pivot: Literal[
        "key_max", "key_min", "value_max", "value_min", "attention_max", "attention_min", "random"
    ] = "key_max"
    rule: Literal["exact", "paper"] = "exact"

    def problems(self) -> list[str | None]:
        both = [self.image_pivots, self.text_pivots]
        none = all(isinstance(n, int) for n in both) and sum(both) == 0
        return [
            *super().problems(),
            check_whole("image_pivots", self.image_pivots, 0),
            check_whole("text_pivots", self.text_pivots, 0),
            check_choice("pivot", self.pivot, PIVOTS),
            check_choice("rule", self.rule, ("exact", "paper")),
            "image_pivots=0 and text_pivots=0: expected at least one pivot" if none else None,
        ]

    def required(self) -> frozenset[str]:
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

    def _plan(self, view: View) -> tuple[list[int], list[list[int]]]:
        """Host numbers of each pool: its image pivots, and how many tokens each pivot takes."""
        pools = zip(view.pools.sizes, view.budgets, view.pools.prompt_sizes, strict=True)
        images, quotas = [], []
        for size, budget, prompt in pools:
            n_image, n_text = self._pivot_counts(size, budget, prompt)
            images.append(n_image)
            quotas.append(self._quotas(self.count(size, budget, prompt) - n_image, budget, n_image, n_text))
        return images, quotas

    def _quotas(self, wanted: int, budget: int, n_image: int, n_text: int) -> list[int]:
        """In the order of the visit; a pivot that this pool lacks takes nothing."""
        each, extra = divmod(wanted, max(1, n_image + n_text))
        if self.rule == "paper":
            each, extra = self._paper_quota(budget), 0
        takes = [each + (i < extra) for i in range(n_image + n_text)]
        lacking = max(1, self.image_pivots) - n_image
        return takes[:n_image] + [0] * lacking + takes[n_image:] + [0] * (self.text_pivots - n_text)

    @torch.no_grad()
    def select(self, view: View) -> Tensor:
        n_image, quotas = self._plan(view)
        kind, _, side = self.pivot.partition("_")
        score, sign = cast(Score, kind), -1.0 if side == "min" else 1.0
        image = _top(sign * view.visual(score), view.valid, max(1, self.image_pivots))
        used = _places(image) < per_pool(n_image, image)[:, None]
        text = _top(sign * view.score(score), view.pools.prompt, self.text_pivots)
        own = view.hidden.gather(1, image[..., None].expand(-1, -1, view.hidden.shape[-1]))
        missing = max(1, self.image_pivots) - image.shape[1]
        own = torch.nn.functional.pad(own, (0, 0, 0, missing))
        pivots = torch.cat([own, view.hidden_at(text)], 1)
        keep = torch.zeros_like(view.valid).scatter(1, image, used)
        return take_least_similar(view.hidden, pivots, keep, view.valid, quotas)


def _top(score: Tensor, among: Tensor, number: int) -> Tensor:
    """[R, number] positions of the highest scores; where there are fewer, what follows is never used."""
    return score.masked_fill(~among, -torch.inf).topk(min(number, score.shape[1]), dim=1).indices


def _places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device)


def take_least_similar(
    hidden: Tensor, pivots: Tensor, keep: Tensor, valid: Tensor, quotas: list[list[int]]
) -> Tensor:
    """hidden [R, N, D], pivots [R, P, D], keep [R, N] the image pivots -> keep with every quota taken.

    One batched similarity; a loop over the P pivots only, none over tokens, and nothing read back.
    Dividing by the pivot's own norm would not change an order, so it is left out.
    """
    inverse = torch.linalg.vector_norm(hidden, dim=-1).clamp_min(1e-8).reciprocal()
    similarity = torch.bmm(pivots, hidden.transpose(1, 2)) * inverse[:, None]  # [R, P, N]
    free, quota = valid & ~keep, per_pool(quotas, hidden)
    for p in range(pivots.shape[1]):
        largest = min(max(takes[p] for takes in quotas), hidden.shape[1])
        if largest:
            distance = similarity[:, p].masked_fill(~free, torch.inf)
            found = distance.topk(largest, dim=1, largest=False).indices
            picked = torch.zeros_like(keep).scatter(1, found, _places(found) < quota[:, p, None]) & free
            keep, free = keep | picked, free & ~picked
    return keep
