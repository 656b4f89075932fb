"""Metrics of short answers, by name: the score of one answer, and how scores are aggregated to one number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

ScoreFunction = Callable[[str, Sequence[str]], float | None]
Aggregate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """score: (prediction, all correct answers) -> the score, or None where the metric does not apply to the question.
    aggregate: scores [..., n] -> [...]. is_proportion: scores are 0 or 1 and the aggregate is their mean."""

    name: str
    score: ScoreFunction
    aggregate: Aggregate
    is_proportion: bool
    title: str


# Text normalization.

ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(n) for n, word in enumerate(_NUMBER_WORDS.split())}
NUMBERS["none"] = "0"
_CONTRACTED = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't how's i'm i've isn't mightn't mustn't "
    "she's shouldn't somebody's someone's that's there's they're they've wasn't weren't what's where's who's won't "
    "wouldn't y'all you're you've"
)
CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}  # "dont" -> "don't"
_MARK_BETWEEN_DIGITS = re.compile(r"(?<=\d)[.,:](?=\d)")
_PUNCTUATION = re.compile(r"[^\w\s']|_", re.UNICODE)
_WORD = re.compile(r"\w+", re.UNICODE)


def normalize(text: str) -> str:
    """Ignore case, repeated white space and a final full stop."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.casefold())


def normalize_vqa(text: str) -> str:
    """The VQA benchmark's rule: no punctuation except within numbers, no articles, number words as digits."""
    placeholders = {".": "DECIMALPOINT", ",": "", ":": "TIMECOLON"}
    text = _MARK_BETWEEN_DIGITS.sub(lambda mark: placeholders[mark[0]], text.casefold())
    found = [CONTRACTIONS.get(word, NUMBERS.get(word, word)) for word in _PUNCTUATION.sub(" ", text).split()]
    answer = " ".join(word for word in found if word not in ARTICLES)
    return answer.replace("DECIMALPOINT", ".").replace("TIMECOLON", ":")


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of characters."""
    previous = list(range(len(second) + 1))
    for i, left in enumerate(first, 1):
        row = [i]
        for j, right in enumerate(second, 1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (left != right)))
        previous = row
    return previous[-1]


# Scores of one answer.


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction equals one of the answers."""
    return float(normalize(prediction) in {normalize(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if the words of one of the answers occur in the prediction, adjacent and in order."""
    text = f" {' '.join(words(prediction))} "
    wanted = [" ".join(words(answer)) for answer in answers]
    return float(any(f" {answer} " in text for answer in wanted if answer))


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy: the mean over leaving out each answer in turn; three matches among the others are a full score.

    With fewer than three others, all of them have to match. A single answer has to match itself.
    """
    predicted, given = normalize_vqa(prediction), [normalize_vqa(answer) for answer in answers]
    if len(given) == 1:
        return float(predicted == given[0])
    matches = sum(predicted == answer for answer in given)
    needed = min(3, len(given) - 1)
    scores = [min(1.0, (matches - (predicted == left_out)) / needed) for left_out in given]
    return sum(scores) / len(scores)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity to the nearest answer; 0 if half of the characters or more differ."""
    return max(_similarity(normalize(prediction), normalize(answer)) for answer in answers)


def _similarity(prediction: str, answer: str) -> float:
    longest = max(len(prediction), len(answer))
    distance = edit_distance(prediction, answer) / longest if longest else 0.0
    return 1.0 - distance if distance < 0.5 else 0.0


TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_NEGATIVE = 0.0, 1.0, 2.0, 3.0


def yes_or_no(prediction: str, answers: Sequence[str]) -> float | None:
    """One of the four cases of the confusion matrix; None unless the answer is yes or no.

    A prediction that is neither yes nor no counts as wrong.
    """
    wanted, predicted = _first_yes_or_no(answers[0]), _first_yes_or_no(prediction)
    if wanted is None or len(words(answers[0])) != 1:
        return None
    if wanted:
        return TRUE_POSITIVE if predicted else FALSE_NEGATIVE
    return TRUE_NEGATIVE if predicted is False else FALSE_POSITIVE


def _first_yes_or_no(text: str) -> bool | None:
    return next((word == "yes" for word in words(text) if word in ("yes", "no", "not")), None)


# Aggregation.


def mean(scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores.mean(-1))


def f1_of_yes(cases: np.ndarray) -> np.ndarray:
    """F1 of the answer yes, as in POPE: 2 TP / (2 TP + FP + FN); 0 if there is no yes at all."""
    hits = (cases == TRUE_POSITIVE).sum(-1)
    errors = ((cases == FALSE_POSITIVE) | (cases == FALSE_NEGATIVE)).sum(-1)
    return np.asarray(2 * hits / np.maximum(2 * hits + errors, 1))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("exact_match", exact_match, mean, True, "exact match"),
        Metric("contains", contains, mean, True, "contains the answer"),
        Metric("vqa", vqa, mean, False, "VQA accuracy"),
        Metric("anls", anls, mean, False, "ANLS"),
        Metric("yes_no_f1", yes_or_no, f1_of_yes, False, "F1 of yes"),
    )
}


def unknown_metric(name: str) -> str | None:
    """The error message for a name that is not a metric, else None."""
    if name in METRICS:
        return None
    near = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown metric {name!r}, expected one of {', '.join(METRICS)}{hint}"
