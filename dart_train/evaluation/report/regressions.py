"""The worst regressions: questions that full tokens answer right and a reduction answers wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ...common.metrics import METRICS, TRUE_NEGATIVE, TRUE_POSITIVE
from ..answer_store import AnswerRecord
from ..comparison_grid import FULL
from ..scoring import cell_key

_HALF = 0.5  # of full marks, from which on an answer counts as right


@dataclass(frozen=True)
class Regression:
    """wrong: lines of the same checkpoint whose answer is not right, gentlest reduction first; right: how many reduced
    rows still are."""

    full: AnswerRecord
    wrong: tuple[AnswerRecord, ...]
    right: int


def is_right(metric: str, line: AnswerRecord) -> bool:
    score = METRICS[metric].score(line["prediction"], line["answers"])
    if score is None:
        return False
    return score in (TRUE_POSITIVE, TRUE_NEGATIVE) if metric == "yes_no_f1" else score >= _HALF


def regressions(lines: Sequence[AnswerRecord], checkpoint: str, metric: str, most: int) -> list[Regression]:
    """Lost by most rows first, kinds of questions in turn, so that no kind fills the page."""
    mine: dict[tuple[str, str], list[AnswerRecord]] = {}
    for line in lines:
        if line["checkpoint"] == checkpoint:
            mine.setdefault((line["set"], line["id"]), []).append(line)
    found = [_of(answers, metric) for answers in mine.values()]
    lost = sorted((each for each in found if each is not None), key=lambda each: (-len(each.wrong), each.full["id"]))
    kinds: dict[str, list[Regression]] = {}
    for each in lost:
        kinds.setdefault(each.full["kind"], []).append(each)
    taken = [each for some in zip_longest(*kinds.values()) for each in some if each is not None]
    return taken[:most]


def _of(answers: Sequence[AnswerRecord], metric: str) -> Regression | None:
    full = next((line for line in answers if line["method"] == FULL), None)
    reduced = [line for line in answers if cell_key(line)[1] != FULL]
    if full is None or not is_right(metric, full):
        return None
    wrong = [line for line in reduced if not is_right(metric, line)]
    if not wrong:
        return None
    gentlest = sorted(wrong, key=lambda line: -int(line["kept"]))
    return Regression(full, tuple(gentlest), len(reduced) - len(wrong))
