"""The metrics, by name: what one answer scores, and how scores become one number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Texts made comparable: what the metrics count as the same answer.

ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED.split())} | {"none": "0"}
_SHORT = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't how's i'm i've isn't mightn't mustn't "
    "she's shouldn't somebody's someone's that's there's they're they've wasn't weren't what's where's who's won't "
    "wouldn't y'all you're you've"
)
CONTRACTIONS = {word.replace("'", ""): word for word in _SHORT.split()}  # how people write them, and should
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[.,:](?=\d)")
_MARKS = re.compile(r"[^\w\s']|_", re.UNICODE)
_WORD = re.compile(r"\w+", re.UNICODE)


def tidy(text: str) -> str:
    """Case, white space and a closing full stop do not tell answers apart."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def words(text: str) -> list[str]:
    """The bare words of a text, in lower case."""
    return _WORD.findall(text.casefold())


def plain_answer(text: str) -> str:
    """As the VQA benchmark compares: no marks but those within numbers, no articles, numbers as digits."""
    kept = _BETWEEN_DIGITS.sub(lambda mark: {".": "\0p", ",": "", ":": "\0c"}[mark[0]], text.casefold())
    kept = _MARKS.sub(" ", kept.replace("\0p", "DECIMALPOINT").replace("\0c", "TIMECOLON"))
    found = [CONTRACTIONS.get(word, NUMBERS.get(word, word)) for word in kept.split()]
    answer = " ".join(word for word in found if word not in ARTICLES)
    return answer.replace("DECIMALPOINT", ".").replace("TIMECOLON", ":")


def edits(one: str, other: str) -> int:
    """Insertions, deletions and replacements of characters between two texts (Levenshtein)."""
    before = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        here = [i]
        for j, right in enumerate(other, 1):
            here.append(min(before[j] + 1, here[-1] + 1, before[j - 1] + (left != right)))
        before = here
    return before[-1]


Score = Callable[[str, Sequence[str]], float | None]
TokenGroup = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """score: of a prediction, given all answers that count as right; None where it cannot judge such a question.
    pool: scores [..., n] -> [...] one number. share: scores are 0 or 1, and pooled by their mean."""

    name: str
    score: Score
    pool: TokenGroup
    share: bool
    title: str


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 where it is one of the answers, but for case, white space and a closing full stop."""
    return float(tidy(prediction) in {tidy(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 where the words of an answer stand in it, in a row."""
    said = f" {' '.join(words(prediction))} "
    wanted = [" ".join(words(answer)) for answer in answers]
    return float(any(f" {answer} " in said for answer in wanted if answer))


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """VQA's soft accuracy: against all answers but one at a time, three that agree are full marks. Where fewer than
    three others are left, all of them have to agree; a lone answer has to be met."""
    said, given = plain_answer(prediction), [plain_answer(answer) for answer in answers]
    if len(given) == 1:
        return float(said == given[0])
    agree = sum(said == answer for answer in given)
    needed = min(3, len(given) - 1)
    marks = [min(1.0, (agree - (said == left_out)) / needed) for left_out in given]
    return sum(marks) / len(marks)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """For reading: 1 less the share of characters to edit, to the nearest answer; 0 from one half on."""
    return max(_similar(tidy(prediction), tidy(answer)) for answer in answers)


def _similar(said: str, answer: str) -> float:
    longest = max(len(said), len(answer))
    distance = edits(said, answer) / longest if longest else 0.0
    return 1.0 - distance if distance < 0.5 else 0.0


RIGHT_YES, FALSE_YES, FALSE_NO, RIGHT_NO = 0.0, 1.0, 2.0, 3.0


def yes_or_no(prediction: str, answers: Sequence[str]) -> float | None:
    """Which of the four cases it is; None where yes or no was not asked. What is neither yes nor no is wrong."""
    wanted, said = _yes(answers[0]), _yes(prediction)
    if wanted is None or len(words(answers[0])) != 1:
        return None
    if wanted:
        return RIGHT_YES if said else FALSE_NO
    return RIGHT_NO if said is False else FALSE_YES


def _yes(text: str) -> bool | None:
    """What its first yes or no says."""
    return next((word == "yes" for word in words(text) if word in ("yes", "no", "not")), None)


def mean(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores.mean(-1))


def f1_of_yes(cases: np.ndarray) -> np.ndarray:
    """Of the answer yes, as POPE reports it: 2 TP / (2 TP + FP + FN); 0 where there was no yes to find."""
    hits, wrong = (cases == RIGHT_YES).sum(-1), ((cases == FALSE_YES) | (cases == FALSE_NO)).sum(-1)
    return np.asarray(2 * hits / np.maximum(2 * hits + wrong, 1))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, mean, True, "exact match"),
        Metric("contains", contains, mean, True, "contains the answer"),
        Metric("vqa", vqa, mean, False, "VQA soft accuracy"),
        Metric("anls", anls, mean, False, "ANLS"),
        Metric("yes_no_f1", yes_or_no, f1_of_yes, False, "F1 of yes"),
    )
}


def unknown_metric(name: str) -> str | None:
    """What is wrong with a metric's name, or None."""
    if name in METRICS:
        return None
    near = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown metric {name!r}, expected one of {', '.join(METRICS)}{hint}"
