"""The length limit: text is shortened, whole pictures stay, and what cannot be shortened is told."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .chat_template import Span
from .issues import BadRowError
from .sample import ImageRef, Sample

# From characters to tokens: which tokens are learnt from, and which belong to pictures.

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


POLICIES = ("drop", "error", "truncate_text")
_JOINT = " ... "
_ROUNDS = 12


class TooLongError(ValueError):
    """A row over max_length under on_too_long: error. Not a `BadRowError`: it ends the run."""


def fit(
    sample: Sample, tokens: Tokens, limit: int, policy: str, tokenise: Callable[[Sample], Tokens], tokenizer: Any
) -> tuple[Sample, int]:
    """(the sample, perhaps with less text, and how many of its tokens to use). Image tokens are never cut: later
    exchanges go first, then the middle of the longest question or the end of the last answer, whichever is longer.
    """
    said = f"{sample.id}: {len(tokens.ids)} tokens, max_length is {limit}"
    if policy == "error":
        raise TooLongError(f"{said}; raise max_length, or set on_too_long to drop or truncate_text")
    if policy == "drop":
        raise BadRowError("too_long", said)
    for _ in range(_ROUNDS):
        shorter = _without_last_exchange(sample)
        if shorter is None:
            end = _end_of_cut(tokens, limit)
            question = _longest_question(sample, tokenizer)
            if end and len(question[2]) <= _last_answer(tokens):
                return sample, end
            shorter = _shortened(sample, question, len(tokens.ids) - limit, tokenizer)
            if shorter is None:
                if end:
                    return sample, end
                raise BadRowError("too_long", f"{said}; its images and markup alone leave no room for an answer")
        sample, tokens = shorter, tokenise(shorter)
        if len(tokens.ids) <= limit:
            return sample, len(tokens.ids)
    raise BadRowError("too_long", said)


def _without_last_exchange(sample: Sample) -> Sample | None:
    """Without the last question and answer, unless they show a picture or are the only ones."""
    last = sample.turns[-2:]
    shows = any(isinstance(part, ImageRef) for turn in last for part in turn.parts)
    exchanges = sum(turn.role == "assistant" for turn in sample.turns)
    return None if shows or exchanges < 2 else replace(sample, turns=sample.turns[:-2])


def _end_of_cut(tokens: Tokens, limit: int) -> int:
    """How many tokens stay if the tail is simply cut: up to the last one that is learnt from within the limit;
    0 where that would cut a picture or leave nothing to learn. What ends a turn goes with the tail, so a cut
    answer does not teach to stop there."""
    learnt = tokens.supervised[tokens.supervised < limit]
    if not len(learnt) or tokens.image_end > limit:
        return 0
    return max(int(learnt[-1]) + 1, tokens.image_end)


def _last_answer(tokens: Tokens) -> int:
    """Tokens of the last stretch that is learnt from."""
    learnt = tokens.supervised
    breaks = (learnt[1:] - learnt[:-1] > 1).nonzero()[0]
    return len(learnt) - (int(breaks[-1]) + 1 if len(breaks) else 0)


Question = tuple[int, int, list[int]]


def _longest_question(sample: Sample, tokenizer: Any) -> Question:
    """(turn, part, token ids) of the longest text that a user wrote."""
    found: list[Question] = [(0, 0, [])]
    for i, turn in enumerate(sample.turns):
        for j, part in enumerate(turn.parts):
            if turn.role == "user" and isinstance(part, str):
                found.append((i, j, tokenizer(part, add_special_tokens=False)["input_ids"]))
    return max(found, key=lambda question: len(question[2]))


def _shortened(sample: Sample, question: Question, excess: int, tokenizer: Any) -> Sample | None:
    """The question without its middle: what is asked stands at its beginning or at its end."""
    turn, part, ids = question
    text = sample.turns[turn].parts[part] if ids else ""
    assert isinstance(text, str)
    if len(ids) < 8 or len(text) <= len(_JOINT) + 8:
        return None
    keep = max(0, len(ids) - excess - len(_JOINT)) * len(text) // len(ids)
    head, tail = text[: (keep + 1) // 2], text[len(text) - keep // 2 :]
    turns = list(sample.turns)
    turns[turn] = turns[turn].with_text(part, head.rstrip() + _JOINT + tail.lstrip())
    return replace(sample, turns=tuple(turns))
