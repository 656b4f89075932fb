"""Accuracy without the image: the baseline for every accuracy on this set."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from data.scenes.questions import KINDS, Question, questions
from data.scenes.scene import scene


@dataclass(frozen=True)
class BlindBaseline:
    """Accuracies between 0 and 1 on validation questions, of guesses from the training questions."""

    kind: str
    questions: int
    answers: int  # different ones
    majority: float  # always the kind's most frequent answer
    informed: float  # the most frequent answer to the same wording, without the text of plates


def wording(question: str) -> str:
    """A question without the text that it quotes from a plate, which rarely occurs twice."""
    return re.sub(r"[0-9]+|[A-Z]{2,}", "#", question)


def blind_baselines(difficulty: str, seed: int = 0, scenes: int = 2000) -> list[BlindBaseline]:
    """One entry for each kind; from `scenes` training scenes, evaluated on as many validation scenes."""
    train, validation = (list(_questions(difficulty, seed, split, scenes)) for split in ("train", "validation"))
    return [_score(kind, train, validation) for kind in KINDS]


def _questions(difficulty: str, seed: int, split: str, scenes: int) -> Iterable[Question]:
    for index in range(scenes):
        yield from questions(scene(seed, split, index, difficulty))


def _score(kind: str, train: list[Question], validation: list[Question]) -> BlindBaseline:
    by_wording: defaultdict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for one in (one for one in train if one.kind == kind):
        by_wording[wording(one.question)][one.answer] += 1
        overall[one.answer] += 1
    evaluated = [one for one in validation if one.kind == kind]
    majority = overall.most_common(1)[0][0]
    right = informed = 0
    for one in evaluated:
        known = by_wording.get(wording(one.question), overall)
        right += one.answer == majority
        informed += one.answer == known.most_common(1)[0][0]
    answers = len({one.answer for one in evaluated})
    return BlindBaseline(kind, len(evaluated), answers, right / len(evaluated), informed / len(evaluated))


def baseline_table(entries: list[BlindBaseline]) -> str:
    """A Markdown table in percent."""
    lines = ["| kind | questions | answers | majority | informed |", "|---|---|---|---|---|"]
    for one in entries:
        shares = f"{100 * one.majority:.1f} | {100 * one.informed:.1f}"
        lines.append(f"| {one.kind} | {one.questions} | {one.answers} | {shares} |")
    return "\n".join(lines)
