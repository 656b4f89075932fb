"""How far one gets without looking: what an accuracy on this set must be compared with."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from data.scenes.questions import KINDS, Question, questions
from data.scenes.scene import scene


@dataclass(frozen=True)
class Blind:
    """Accuracies between 0 and 1 on validation questions, of guesses learned from training ones."""

    kind: str
    questions: int
    answers: int  # different ones
    majority: float  # always the kind's most frequent answer
    informed: float  # the most frequent answer to that very question, numbers and words on plates apart


def wording(question: str) -> str:
    """A question without what it quotes from a plate: that text is as good as never seen twice."""
    return re.sub(r"[0-9]+|[A-Z]{2,}", "#", question)


def blind(difficulty: str, seed: int = 0, scenes: int = 2000) -> list[Blind]:
    """One entry a kind; `scenes` scenes to learn from and as many to be judged by."""
    train, validation = (list(_ask(difficulty, seed, split, scenes)) for split in ("train", "validation"))
    return [_judge(kind, train, validation) for kind in KINDS]


def _ask(difficulty: str, seed: int, split: str, scenes: int) -> Iterable[Question]:
    for index in range(scenes):
        yield from questions(scene(seed, split, index, difficulty))


def _judge(kind: str, train: list[Question], validation: list[Question]) -> Blind:
    by_wording: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for one in (one for one in train if one.kind == kind):
        by_wording[wording(one.question)][one.answer] += 1
        overall[one.answer] += 1
    asked = [one for one in validation if one.kind == kind]
    usual = overall.most_common(1)[0][0]
    right = informed = 0
    for one in asked:
        known = by_wording.get(wording(one.question), overall)
        right += one.answer == usual
        informed += one.answer == known.most_common(1)[0][0]
    answers = len({one.answer for one in asked})
    return Blind(kind, len(asked), answers, right / len(asked), informed / len(asked))


def table(entries: list[Blind]) -> str:
    """A Markdown table in percent."""
    lines = ["| kind | questions | answers | majority | informed |", "|---|---|---|---|---|"]
    for one in entries:
        shares = f"{100 * one.majority:.1f} | {100 * one.informed:.1f}"
        lines.append(f"| {one.kind} | {one.questions} | {one.answers} | {shares} |")
    return "\n".join(lines)
