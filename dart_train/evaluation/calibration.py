"""The smallest budget that loses at most so many points against full tokens, with a confidence that holds.

Budgets are tested from the largest to the smallest, each with the exact paired test of `common/paired_loss.py` at level
alpha = 1 - confidence, up to the first that fails: fixed-sequence testing, as in Learn then Test (arXiv 2110.01052). No
correction is needed for several budgets: a wrong result requires that the first budget in this order whose loss is too
large passes its test, which has probability at most alpha.

The guarantee is about questions like those of the sets, answered by these weights. It needs independent questions, and
questions about one image are not: of those that share an image, one is used, unless all are requested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..common.metrics import METRICS, Metric
from ..common.paired_loss import loss_bound, loss_p_value, questions_needed
from ..common.statistics import Interval, wilson
from .answer_store import AnswerRecord
from .comparison_grid import FULL
from .questions import Question

QuestionId = tuple[str, str]  # set and id


@dataclass(frozen=True)
class CalibrationLevel:
    """max_loss: a share, such as 0.02 for two points."""

    max_loss: float
    confidence: float

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.max_loss < 1:
            problems.append(f"max loss {100 * self.max_loss:g}: expected points above 0 and below 100")
        if not 0.5 <= self.confidence < 1:
            problems.append(f"confidence {self.confidence:g}: expected at least 0.5 and below 1, such as 0.95")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def alpha(self) -> float:
        """Rounded, so that 1 - 0.95 is 0.05."""
        return round(1 - self.confidence, 12)

    def check_number(self, questions: int) -> None:
        needed = questions_needed(self.max_loss, self.alpha)
        if questions < needed:
            raise ValueError(
                f"{questions} questions cannot show a loss of at most {100 * self.max_loss:g} points with confidence "
                f"{self.confidence:g}, even if no answer changes: give at least {needed} (of those about one image, "
                "only one counts), or allow a larger loss or less confidence"
            )


@dataclass(frozen=True)
class BudgetTest:
    """One budget against full tokens. lost: questions that only full tokens answer correctly; gained: the reverse.
    tested: whether the fixed order reached this budget; passed: its test and all before it succeeded."""

    budget: str
    questions: int
    full_correct: int
    lost: int
    gained: int
    p: float
    tested: bool
    passed: bool

    @property
    def loss(self) -> float:
        return (self.lost - self.gained) / self.questions

    def bound(self, level: CalibrationLevel) -> float:
        """The loss is below this with the level's confidence."""
        return loss_bound(self.lost, self.gained, self.questions, level.alpha)


@dataclass(frozen=True)
class KindLosses:
    """Questions of one kind. lost, gained: of each budget. No guarantee: a description of these questions."""

    kind: str
    questions: int
    full_correct: int
    lost: tuple[int, ...]
    gained: tuple[int, ...]

    def losses(self) -> list[float]:
        return [(lost - gained) / self.questions for lost, gained in zip(self.lost, self.gained, strict=True)]

    def full_interval(self) -> Interval:
        return wilson(self.full_correct, self.questions)

    def smallest(self, budgets: Sequence[str], max_loss: float) -> str:
        """The smallest budget that, with all larger ones, loses at most `max_loss` here; `full` if none."""
        found = FULL
        for budget, loss in zip(budgets, self.losses(), strict=True):
            if loss > max_loss:
                break
            found = budget
        return found


@dataclass(frozen=True)
class Calibration:
    level: CalibrationLevel
    tests: tuple[BudgetTest, ...]  # from the largest budget to the smallest
    kinds: tuple[KindLosses, ...]

    @property
    def chosen(self) -> BudgetTest | None:
        """The smallest budget that passed; None: none did."""
        return next((test for test in reversed(self.tests) if test.passed), None)

    def to_dict(self) -> dict[str, Any]:
        """As reducer.json has it; losses and bounds as shares."""
        budgets = [test.budget for test in self.tests]
        kinds = [
            {**asdict(kind), "loss": kind.losses(), "smallest": kind.smallest(budgets, self.level.max_loss)}
            for kind in self.kinds
        ]
        tests = [{**asdict(test), "loss": test.loss, "bound": test.bound(self.level)} for test in self.tests]
        chosen = None if self.chosen is None else self.chosen.budget
        return {"budget": chosen, **asdict(self.level), "tests": tests, "kinds": kinds}


def calibrate(
    records: Sequence[AnswerRecord], questions: Sequence[Question], budgets: Sequence[str], metric: Metric,
    level: CalibrationLevel,
) -> Calibration:  # fmt: skip
    """records: the answers of one checkpoint, with full tokens and at each of `budgets`, which descend; only those of
    `questions` count."""
    if not metric.is_proportion:
        usable = ", ".join(name for name, each in METRICS.items() if each.is_proportion)
        raise ValueError(f"metric {metric.name}: the test needs answers that are right or wrong; choose from {usable}")
    level.check_number(len(questions))
    wanted = {(question.set, question.id): question.kind for question in questions}
    correct = {budget: _correct(records, budget, metric, wanted) for budget in (FULL, *budgets)}
    counts = {budget: _count(correct[FULL], correct[budget], wanted) for budget in budgets}
    tests = run_tests(counts, len(wanted), level)
    kinds = sorted({kind for kind in wanted.values() if kind})
    described = [_describe(kind, [key for key in wanted if wanted[key] == kind], budgets, correct) for kind in kinds]
    return Calibration(level, tests, tuple(described))


def _correct(
    records: Iterable[AnswerRecord], budget: str, metric: Metric, wanted: Mapping[QuestionId, str]
) -> dict[QuestionId, bool]:
    found = {
        (record["set"], record["id"]): bool(metric.score(record["prediction"], record["answers"]))
        for record in records
        if record["budget"] == budget and (record["set"], record["id"]) in wanted
    }
    if len(found) < len(wanted):
        name = "full tokens" if budget == FULL else f"budget {budget}"
        raise ValueError(
            f"{len(found)} of {len(wanted)} questions were answered with {name}, expected all: the test compares each "
            "budget with full tokens, question by question"
        )
    return found


def _count(
    full: Mapping[QuestionId, bool], reduced: Mapping[QuestionId, bool], keys: Iterable[QuestionId]
) -> tuple[int, int, int]:
    """(right with full tokens, lost, gained)."""
    pairs = [(full[key], reduced[key]) for key in keys]
    return sum(one for one, _ in pairs), pairs.count((True, False)), pairs.count((False, True))


def run_tests(
    counts: Mapping[str, tuple[int, int, int]], questions: int, level: CalibrationLevel
) -> tuple[BudgetTest, ...]:
    """The tests in their fixed order. counts: for each budget, from the largest, how many questions full tokens answer
    correctly, and how many the budget loses and gains."""
    tests: list[BudgetTest] = []
    for budget, (right, lost, gained) in counts.items():
        reached = not tests or tests[-1].passed
        p = loss_p_value(lost, gained, questions, level.max_loss, level.alpha)
        tests.append(BudgetTest(budget, questions, right, lost, gained, p, reached, reached and p <= level.alpha))
    return tuple(tests)


def _describe(
    kind: str, keys: Sequence[QuestionId], budgets: Sequence[str], correct: Mapping[str, Mapping[QuestionId, bool]]
) -> KindLosses:
    counts = [_count(correct[FULL], correct[budget], keys) for budget in budgets]
    lost, gained = tuple(count[1] for count in counts), tuple(count[2] for count in counts)
    return KindLosses(kind, len(keys), counts[0][0], lost, gained)


def independent_questions(questions: Sequence[Question], seed: int) -> list[Question]:
    """One question of each image, or of each set of images that are shown together, drawn by a hash of seed and
    question; questions without an image all count."""
    chosen: dict[Any, Question] = {}
    for question in questions:
        shown = tuple(question.refs)
        group = (question.store.root, shown) if shown else (question.set, question.id)
        if group not in chosen or _draw(question, seed) < _draw(chosen[group], seed):
            chosen[group] = question
    drawn = {id(question) for question in chosen.values()}
    return [question for question in questions if id(question) in drawn]


def _draw(question: Question, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {question.set} {question.id} {question.key}".encode(), digest_size=8).digest()


def digest_of(questions: Iterable[Question]) -> str:
    """Of the content of the questions: texts, answers, and which images."""
    hasher = hashlib.sha256()
    for question in questions:
        hasher.update(repr((question.set, question.id, question.turns, question.answers)).encode())
    return hasher.hexdigest()[:16]
