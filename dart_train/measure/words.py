"""Texts made comparable: what the metrics count as the same answer."""

from __future__ import annotations

import re

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
