"""From the characters of a rendered conversation to its tokens: which are supervised, and which belong to images."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chat_template import Span

IGNORED = -100
LOSS_WEIGHTS = "loss_weights"  # of a batch: [B, L] the weight of each label, where answers have weights other than 0, 1


@dataclass(frozen=True)
class SampleTokens:
    """One conversation as the model reads it, images expanded to their placeholders. ids, labels: [L]."""

    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray  # [L] of each label in the loss; 0 where there is none
    image_ends: tuple[int, ...] = ()  # for each image, the position after its last token

    @property
    def last_image_end(self) -> int:
        """Every token of an image is before this position; 0 without images."""
        return max(self.image_ends, default=0)

    @property
    def supervised(self) -> np.ndarray:
        """[S] supervised positions."""
        return np.flatnonzero(self.labels != IGNORED)

    def answer_starts(self) -> tuple[int, ...]:
        """For each image, the position where the next answer starts: images of one turn have the same."""
        supervised = self.supervised
        after = np.searchsorted(supervised, np.array(self.image_ends, dtype=int))
        return tuple(int(supervised[i]) if i < len(supervised) else len(self.ids) for i in after)

    def prompt_tokens_after(self, visual: Iterable[int]) -> tuple[int, ...]:
        """For each image, the text tokens between its last visual token and the answer. visual: the ids of visual
        tokens."""
        is_visual = np.isin(self.ids, list(visual))
        text = np.cumsum(~is_visual & (self.labels == IGNORED))
        positions = np.flatnonzero(is_visual)
        last = [positions[positions < end].max(initial=0) for end in self.image_ends]
        return tuple(int(text[answer - 1] - text[at]) for at, answer in zip(last, self.answer_starts(), strict=True))


def make_tokens(
    ids: Sequence[int],
    offsets: Sequence[Span],
    text: str,
    answers: Iterable[tuple[Span, float]],
    images: Sequence[dict[str, Any]],
) -> SampleTokens:
    """`text` is the rendered conversation, `answers` are spans in it with their weights; an answer of weight 0 is not
    supervised. `offsets` are the spans of the tokens in the expanded text, `images` the expanded placeholders: `span`
    in the rendered text, `new_span` in the expanded one."""
    token_ids, (starts, ends) = np.asarray(ids), np.asarray(offsets).reshape(-1, 2).T
    has_text, weights, image_ends = starts < ends, np.zeros(len(ids), dtype=np.float32), list[int]()
    expanded = _OffsetMap(images)
    for (start, end), weight in answers:
        # A word token may include the blank before it. A token that reaches beyond the answer is not supervised.
        opening = expanded(len(text[:start].rstrip()))
        weights[(starts >= opening) & (ends > expanded(start)) & (ends <= expanded(end)) & has_text] = weight
    for image in images:
        start, end = image["new_span"]
        covered = has_text & (starts < end) & (ends > start)
        weights[covered] = 0.0
        image_ends.append(int(np.flatnonzero(covered).max(initial=-1)) + 1)
    return SampleTokens(token_ids, np.where(weights > 0, token_ids, IGNORED), weights, tuple(image_ends))


class _OffsetMap:
    """The position of a character of the rendered text after the placeholders before it are expanded."""

    def __init__(self, images: Sequence[dict[str, Any]]) -> None:
        self._ends = [image["span"][1] for image in images]
        self._shifts = [0, *(image["new_span"][1] - image["span"][1] for image in images)]

    def __call__(self, character: int) -> int:
        return character + self._shifts[bisect.bisect_right(self._ends, character)]
