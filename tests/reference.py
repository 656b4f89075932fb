"""DART as its paper tells it (arXiv 2502.11494): one sample, Python loops and sets over tokens.

Slow on purpose, and written apart from the package: the batched algebra is held against it, and it is the usual
way to write it, beside which the benchmark puts ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def l1_norms(heads: Tensor) -> list[float]:
    """heads [H, L, d] of one sample -> the L1 norm of each token, all heads concatenated."""
    return [float(heads[:, token].float().abs().sum()) for token in range(heads.shape[1])]


def final_norm(states: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    """states [L, D] as the language model's last RMSNorm would see them."""
    states = states.float()
    normed = states / (states.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return normed if weight is None else normed * weight


def dart(
    states: Tensor,
    scores: Sequence[float],
    image: Sequence[int],
    text: Sequence[int],
    budget: int,
    *,
    weight: Tensor | None = None,
    image_pivots: int = 4,
    text_pivots: int = 4,
    rule: str = "exact",
) -> set[int]:
    """states [L, D] at layer K, scores of all L tokens (pivots are the highest), positions of the visual tokens
    and of the text that may be a pivot -> the positions of the visual tokens that are kept."""
    normed = final_norm(states, weight)
    of_text = _best(text, scores, text_pivots)
    of_image = _best(image, scores, image_pivots if image_pivots or of_text else 1)
    if rule == "exact":
        of_image = of_image[:budget]
        quotas = _dealt(min(budget, len(image)) - len(of_image), len(of_image) + len(of_text))
    else:
        quotas = [budget // (image_pivots + text_pivots)] * (len(of_image) + len(of_text))
    kept, pool = set(of_image), set(image) - set(of_image)
    for pivot, quota in zip(of_image + of_text, quotas, strict=True):
        taken = _least_similar(normed, pivot, pool, quota)
        kept.update(taken)
        pool.difference_update(taken)
    return kept


def _best(positions: Iterable[int], scores: Sequence[float], number: int) -> list[int]:
    return sorted(positions, key=lambda token: -scores[token])[:number]


def _dealt(tokens: int, pivots: int) -> list[int]:
    """One token after the other to one pivot after the other."""
    quotas = [0] * pivots
    for token in range(tokens):
        quotas[token % pivots] += 1
    return quotas


def _least_similar(normed: Tensor, pivot: int, pool: set[int], quota: int) -> list[int]:
    candidates = sorted(pool)
    similarity = cosine_similarity(normed[pivot], normed[candidates], dim=-1)
    least = torch.topk(similarity, min(quota, len(candidates)), largest=False).indices
    return [candidates[place] for place in least.tolist()]
