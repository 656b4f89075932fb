"""The length limit: text is shortened, images are never cut, and a row that cannot be shortened is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .issues import BadRowError
from .sample import Sample
from .supervision import SampleTokens

POLICIES = ("drop", "error", "truncate_text")
_JOINT = " ... "
_MAX_ROUNDS = 12


class TooLongError(ValueError):
    """A row over max_length under on_too_long: error. Not a `BadRowError`: it ends the run."""


def shorten_to_fit(
    sample: Sample,
    tokens: SampleTokens,
    limit: int,
    policy: str,
    tokenise: Callable[[Sample], SampleTokens],
    tokenizer: Any,
) -> tuple[Sample, int]:
    """(the sample, perhaps with less text, and how many of its tokens to use). Image tokens are never cut: later
    exchanges are removed first, then the middle of the longest question or the end of the last answer, whichever is
    longer."""
    excess = f"{sample.id}: {len(tokens.ids)} tokens, max_length is {limit}"
    if policy == "error":
        raise TooLongError(f"{excess}; raise max_length, or set on_too_long to drop or truncate_text")
    if policy == "drop":
        raise BadRowError("too_long", excess)
    for _ in range(_MAX_ROUNDS):
        shorter = _without_last_exchange(sample)
        if shorter is None:
            end = _end_of_cut(tokens, limit)
            question = _longest_question(sample, tokenizer)
            if end and len(question[2]) <= _last_answer_length(tokens):
                return sample, end
            shorter = _shorten_question(sample, question, len(tokens.ids) - limit, tokenizer)
            if shorter is None:
                if end:
                    return sample, end
                raise BadRowError("too_long", f"{excess}; its images and markup alone leave no room for an answer")
        sample, tokens = shorter, tokenise(shorter)
        if len(tokens.ids) <= limit:
            return sample, len(tokens.ids)
    raise BadRowError("too_long", excess)


def _without_last_exchange(sample: Sample) -> Sample | None:
    """Without the last question and all that follows it, unless that contains an image or are the only supervised
    ones."""
    if sample.last_answer_only:
        return None
    start = max((number for number, turn in enumerate(sample.turns) if turn.role == "user"), default=0)
    start -= start > 1 and sample.turns[start - 1].role == "system"
    rest = replace(sample, turns=sample.turns[:start])
    has_image = any(turn.media for turn in sample.turns[start:])
    return None if has_image or not any(rest.weights) else rest


def _end_of_cut(tokens: SampleTokens, limit: int) -> int:
    """How many tokens remain if the tail is simply cut: up to the last supervised one within the limit; 0 if that
    would cut an image or leave nothing to supervise. The end-of-turn token is cut as well, so a cut answer does not
    teach the model to stop there."""
    supervised = tokens.supervised[tokens.supervised < limit]
    if not len(supervised) or tokens.last_image_end > limit:
        return 0
    return max(int(supervised[-1]) + 1, tokens.last_image_end)


def _last_answer_length(tokens: SampleTokens) -> int:
    """Tokens of the last supervised stretch."""
    supervised = tokens.supervised
    breaks = (supervised[1:] - supervised[:-1] > 1).nonzero()[0]
    return len(supervised) - (int(breaks[-1]) + 1 if len(breaks) else 0)


LongestQuestion = tuple[int, int, list[int]]


def _longest_question(sample: Sample, tokenizer: Any) -> LongestQuestion:
    """(turn, part, token ids) of the longest text that a user wrote."""
    found: list[LongestQuestion] = [(0, 0, [])]
    for i, turn in enumerate(sample.turns):
        for j, part in enumerate(turn.parts):
            if turn.role == "user" and isinstance(part, str):
                found.append((i, j, tokenizer(part, add_special_tokens=False)["input_ids"]))
    return max(found, key=lambda question: len(question[2]))


def _shorten_question(sample: Sample, question: LongestQuestion, excess: int, tokenizer: Any) -> Sample | None:
    """The question without its middle: the actual question is usually at its beginning or at its end."""
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
