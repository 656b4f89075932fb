"""Rewards of rollouts for questions with a reference answer (`preference.rewards: dart_train.rewards:exact_match`).

They are called as TRL calls reward functions: with the completions, and every other column of the rows as a list. A
reward of your own is a function of the same form, named `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .common.metrics import METRICS

REFERENCES = ("solution", "answer")  # columns; the answer of a conversation is in `answer`


def exact_match(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the completion is one of the reference answers, but for case, white space and a final full stop."""
    return _score("exact_match", completions, columns)


def contains(completions: Sequence[Any], **columns: Any) -> list[float]:
    """1 where the words of a reference answer occur in the completion."""
    return _score("contains", completions, columns)


def anls(completions: Sequence[Any], **columns: Any) -> list[float]:
    """Similarity of spelling with the nearest reference answer, from 0 to 1."""
    return _score("anls", completions, columns)


def text_of(completion: Any) -> str:
    """A completion is a text, or messages whose contents are text or parts."""
    if isinstance(completion, str):
        return completion
    contents = [message["content"] for message in completion]
    parts = [content if isinstance(content, str) else "".join(map(_part, content)) for content in contents]
    return "".join(parts)


def _part(part: Mapping[str, Any]) -> str:
    return str(part.get("text") or "")


def _score(name: str, completions: Sequence[Any], columns: Mapping[str, Any]) -> list[float]:
    column = next((columns[name] for name in REFERENCES if columns.get(name) is not None), None)
    if column is None:
        raise ValueError(f"{name} needs a column with reference answers: {' or '.join(REFERENCES)}")
    score: Callable[..., float | None] = METRICS[name].score
    answers = [[each] if isinstance(each, str) else list(each) for each in column]
    return [float(score(text_of(one), given) or 0.0) for one, given in zip(completions, answers, strict=True)]
