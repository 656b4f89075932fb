"""From characters to tokens: which tokens are learnt from, and which belong to pictures."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chat import Span

IGNORED = -100


@dataclass(frozen=True)
class Tokens:
    """One conversation as the model reads it, pictures expanded to their placeholders. ids, labels: [L]."""

    ids: np.ndarray
    labels: np.ndarray
    picture_ends: tuple[int, ...] = ()  # for each picture, the position behind its last token

    @property
    def image_end(self) -> int:
        """Every token of a picture lies before this position; 0 where there is none."""
        return max(self.picture_ends, default=0)

    @property
    def supervised(self) -> np.ndarray:
        """Positions that are learnt from."""
        return np.flatnonzero(self.labels != IGNORED)

    def turns(self) -> tuple[int, ...]:
        """For each picture, where the answer behind it begins: pictures of one turn have the same."""
        learnt = self.supervised
        after = np.searchsorted(learnt, np.array(self.picture_ends, dtype=int))
        return tuple(int(learnt[i]) if i < len(learnt) else len(self.ids) for i in after)

    def behind(self, visual: Iterable[int]) -> tuple[int, ...]:
        """For each picture, tokens of text between its last visual token and the answer; visual: ids of such tokens."""
        shown = np.isin(self.ids, list(visual))
        text, places = np.cumsum(~shown & (self.labels == IGNORED)), np.flatnonzero(shown)
        last = [places[places < end].max(initial=0) for end in self.picture_ends]
        return tuple(int(text[answer - 1] - text[at]) for at, answer in zip(last, self.turns(), strict=True))


def make_tokens(
    ids: Sequence[int], offsets: Sequence[Span], text: str, answers: Iterable[Span], pictures: Sequence[dict[str, Any]]
) -> Tokens:
    """`text` is the rendered conversation, `answers` spans in it. `offsets` are the tokens' spans in the expanded
    text, `pictures` what was expanded: `span` in the one, `new_span` in the other."""
    numbers, (begins, ends) = np.asarray(ids), np.asarray(offsets).reshape(-1, 2).T
    real, learnt, picture_ends = begins < ends, np.zeros(len(ids), dtype=bool), list[int]()
    grown = _Grown(pictures)
    for start, end in answers:
        # A word token may take the blank before it along; one that reaches beyond the answer is not learnt.
        opening = grown(len(text[:start].rstrip()))
        learnt |= (begins >= opening) & (ends > grown(start)) & (ends <= grown(end))
    for picture in pictures:
        start, end = picture["new_span"]
        covered = real & (begins < end) & (ends > start)
        learnt &= ~covered
        picture_ends.append(int(np.flatnonzero(covered).max(initial=-1)) + 1)
    return Tokens(numbers, np.where(learnt & real, numbers, IGNORED), tuple(picture_ends))


class _Grown:
    """Where a character of the rendered text lies once the placeholders before it are expanded."""

    def __init__(self, pictures: Sequence[dict[str, Any]]) -> None:
        self._ends = [picture["span"][1] for picture in pictures]
        self._gains = [0, *(picture["new_span"][1] - picture["span"][1] for picture in pictures)]

    def __call__(self, character: int) -> int:
        return character + self._gains[bisect.bisect_right(self._ends, character)]
