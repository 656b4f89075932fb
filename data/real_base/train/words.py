"""The targets of the projector: for each patch, the language model's own embedding of what it shows and where it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data.things import ThingScene, things
from data.things.patches import BACKGROUND, patch_words
from data.things.scene import LABELS, NOTES, PRICES

DOWN, ACROSS = ("top", "middle", "bottom"), ("left", "center", "right")


class WordTargets:
    """words: [W, D], the embeddings of all words; places: [patches, D], of all places. scale: the mean squared norm."""

    def __init__(self, tokenizer: Any, embeddings: Tensor, side: int, position: float) -> None:
        names = [thing.name for thing in things() if thing.seen]
        self.index = {word: place for place, word in enumerate([BACKGROUND, *names, *LABELS, *PRICES, *NOTES])}
        rows = [_embedding(tokenizer, embeddings, word) for word in self.index if word]
        self.words = torch.stack([torch.zeros_like(rows[0]), *rows])
        self.scale = float(self.words.square().sum(-1).mean())
        down, across = (
            _along(torch.stack([_embedding(tokenizer, embeddings, word) for word in words]), side)
            for words in (DOWN, ACROSS)
        )
        self.places = position * (down.unsqueeze(1) + across.unsqueeze(0)).flatten(0, 1)

    def labels(self, scene: ThingScene, patch: int) -> Tensor:
        """[patches], the index of each patch's word."""
        return torch.tensor([self.index[word] for word in patch_words(scene, patch).flatten()])

    def loss(self, projected: Tensor, labels: Tensor, patches: Tensor) -> tuple[Tensor, float]:
        """projected: [N, D]; labels, patches: [N], the word and the place of each. The second value is the share of
        things and texts whose word is the nearest."""
        words = projected - self.places[patches]
        squares = words.square().sum(1, keepdim=True) + self.words.square().sum(1)
        distances = (squares - 2 * words @ self.words.T) / self.scale  # faster than `cdist`, its backward above all
        near = distances.gather(1, labels.unsqueeze(1)).mean()
        right = (distances.argmin(1) == labels)[labels > 0].float().mean()
        return F.cross_entropy(-10 * distances, labels) + near, float(right)


def _embedding(tokenizer: Any, embeddings: Tensor, word: str) -> Tensor:
    """The mean of the word's tokens, as it is written in the middle of a sentence."""
    ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
    return embeddings[ids].mean(0).float()


def _along(three: Tensor, side: int) -> Tensor:
    """[3, D] -> [side, D]: at a sixth, at the middle and at five sixths exactly one of the three, mixed in between."""
    at = ((torch.arange(side) + 0.5) / side * 3 - 0.5).clamp(0, 2)
    low = at.floor().long().clamp_max(1)
    part = (at - low).unsqueeze(1)
    return three[low] * (1 - part) + three[low + 1] * part
