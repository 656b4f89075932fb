"""DART the usual ways, written afresh, for comparison only.

`set_and_loop` is the pattern of the field's released code: one sample after the other, one pivot after the other;
the whole sequence goes through the final norm, candidates live in Python sets, and every chosen token is read back
from the device. `plain_loops` is the algorithm as a person writes it down first: a loop over tokens, too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, rms_norm

IMAGE_PIVOTS = 4
TEXT_PIVOTS = 4


@torch.no_grad()
def set_and_loop(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[list[int]]:
    """states [B, L, D], keys [B, H, L, d], `tokens` visual ones first, then text -> kept visual positions."""
    return [_one(*row, scale, tokens, budget) for row in zip(states, keys, strict=True)]


def _one(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[int]:
    states = rms_norm(states, states.shape[-1:], scale.to(states.dtype))
    norms = keys.transpose(0, 1).reshape(keys.shape[1], -1).norm(p=1, dim=-1)
    image = norms[:tokens].topk(IMAGE_PIVOTS).indices.tolist()
    text = (norms[tokens:].topk(TEXT_PIVOTS).indices + tokens).tolist()
    quota = budget // (IMAGE_PIVOTS + TEXT_PIVOTS)
    kept = set(image)
    left = set(range(tokens)) - kept
    for pivot in [*image, *text]:
        candidates = list(left)
        similarity = cosine_similarity(states[pivot][None], states[candidates], dim=-1)
        chosen = [candidates[int(i)] for i in similarity.topk(quota, largest=False).indices]
        kept.update(chosen)
        left.difference_update(chosen)
    return sorted(kept)


@torch.no_grad()
def plain_loops(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[list[int]]:
    """The same, token by token."""
    return [_one_by_tokens(*row, scale, tokens, budget) for row in zip(states, keys, strict=True)]


def _one_by_tokens(states: Tensor, keys: Tensor, scale: Tensor, tokens: int, budget: int) -> list[int]:
    states = rms_norm(states, states.shape[-1:], scale.to(states.dtype))
    norms = [float(keys[:, place].abs().sum()) for place in range(keys.shape[1])]
    image = sorted(range(tokens), key=lambda place: -norms[place])[:IMAGE_PIVOTS]
    text = sorted(range(tokens, len(norms)), key=lambda place: -norms[place])[:TEXT_PIVOTS]
    kept = set(image)
    for pivot in [*image, *text]:
        left = [place for place in range(tokens) if place not in kept]
        similarity = {place: float(cosine_similarity(states[pivot], states[place], dim=0)) for place in left}
        kept.update(sorted(left, key=similarity.__getitem__)[: budget // (IMAGE_PIVOTS + TEXT_PIVOTS)])
    return sorted(kept)
