"""The second question about an image: what a selection that was guided by the first question still answers.

`second_turn` of a question set adds up to two sets of their own, in which another question about the same image, with
its reference answer, comes first:

    anew     each turn is a prefill of its own, so that the last question guides the selection
    cached   the cache of the first turn continues: the second question meets the tokens that the first one kept

A selection that looks at no question keeps the same tokens in both.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..data.sample import Turn
from .questions import Question

SecondTurn = Literal["anew", "cached"]


def set_name(name: str, mode: SecondTurn) -> str:
    """The name of the added set in tables."""
    return f"{name}, second turn {mode}"


def second_turns(questions: Iterable[Question], mode: SecondTurn) -> list[Question]:
    """Each question that shares its image with another one, after that one and its reference answer. Which one comes
    first is drawn by a hash. Raises ValueError if no image has two questions."""
    of_image: dict[Any, list[Question]] = defaultdict(list)
    for question in questions:
        if question.refs and len(question.turns) == 1:
            of_image[tuple(question.refs)].append(question)
    found = [
        _after(_draw(question, group), question, mode)
        for group in of_image.values()
        if len(group) > 1
        for question in group
    ]
    if not found:
        raise ValueError(
            "second_turn: no image has two questions of one turn each, so there is no second question to ask; leave it "
            "out, or give a set with several rows for an image"
        )
    return found


def _draw(question: Question, group: Sequence[Question]) -> Question:
    others = [other for other in group if other is not question]
    digest = hashlib.blake2b(question.key.encode(), digest_size=8).digest()
    return others[int.from_bytes(digest) % len(others)]


def _after(first: Question, second: Question, mode: SecondTurn) -> Question:
    key = hashlib.blake2b(f"{first.key} {second.key} {mode}".encode(), digest_size=8).hexdigest()
    texts = [part.strip() for part in second.turns[0].texts if part.strip()]
    turns = (*first.turns, Turn("assistant", (first.answers[0],)), Turn("user", tuple(texts)))
    return replace(
        second,
        set=set_name(second.set, mode),
        id=f"{second.id} after {first.id}",
        turns=turns,
        key=key,
        prefilled=len(first.turns) if mode == "cached" else 0,
    )


def first_turn(question: Question) -> Question:
    """What is prefilled before `question`, whose cache continues."""
    return replace(question, id=f"{question.id}, first turn", turns=question.turns[: question.prefilled])


def check_continues(first: Tensor, both: Tensor, question: Question) -> None:
    """first [B, L], both [B, L + more]: the second prompt has to begin with the first one, token by token."""
    if not torch.equal(both[:, : first.shape[1]], first):
        raise ValueError(
            f"{question.set}, question {question.id}: with this chat template the prompt of the second turn does not "
            "begin with that of the first, so its cache cannot continue; leave `cached` out of second_turn"
        )
