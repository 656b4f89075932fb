"""From answers to scores and paired tests: a pure function of results.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tqdm import tqdm

from ..common.metrics import METRICS, Metric
from ..common.statistics import Estimate, PairedDifference, estimate, holm, paired_difference
from ..config import Compare, QuestionSet
from .answer_store import AnswerRecord
from .comparison_grid import FULL

ALL_KINDS = "all"
CellKey = tuple[str, str, str]  # checkpoint, method, budget
QuestionScores = dict[tuple[str, str], float]  # (set, id) -> score


@dataclass(frozen=True)
class ScoreRow:
    """One line of table.csv. kept: the share of visual tokens kept. from_full: the difference from full tokens of the
    same checkpoint, None for full tokens themselves."""

    cell: CellKey
    set: str
    kind: str
    metric: str
    score: Estimate
    kept: float | None
    from_full: PairedDifference | None


@dataclass(frozen=True)
class PairedTest:
    """The second cell against the first. p_holm: p corrected for all pairs of the same set, kind and metric."""

    first: CellKey
    second: CellKey
    set: str
    kind: str
    metric: str
    difference: PairedDifference
    p_holm: float


@dataclass(frozen=True)
class ScoreGroup:
    """The scores of every cell on the questions of one kind of a set, or of all kinds, in one metric."""

    set: str
    kind: str
    metric: Metric
    scores: Mapping[CellKey, QuestionScores]

    def difference(self, first: CellKey, second: CellKey, seed: int) -> PairedDifference | None:
        """On the questions that both cells have a score of."""
        one, other = self.scores.get(first, {}), self.scores.get(second, {})
        shared = [key for key in one if key in other]
        return paired_difference(self.metric, [one[key] for key in shared], [other[key] for key in shared], seed)


def cell_key(record: AnswerRecord) -> CellKey:
    return (record["checkpoint"], record["method"], record["budget"])


def score_groups(records: Sequence[AnswerRecord], config: Compare, sets: Mapping[str, QuestionSet]) -> list[ScoreGroup]:
    """For each set all questions, then kind by kind; each in every metric that the recipe names for it."""
    groups = []
    for name in dict.fromkeys(record["set"] for record in records):
        of_set = [record for record in records if record["set"] == name]
        set_config = sets.get(name)
        usual = (set_config.metrics if set_config else ()) or config.metrics
        groups += [_score_group(name, ALL_KINDS, metric, of_set) for metric in dict.fromkeys(usual)]
        for kind in sorted({record["kind"] for record in of_set} - {""}):
            of_kind = [record for record in of_set if record["kind"] == kind]
            metrics = (set_config.kind_metrics.get(kind) if set_config else None) or usual
            groups += [_score_group(name, kind, metric, of_kind) for metric in dict.fromkeys(metrics)]
    return [group for group in groups if any(group.scores.values())]


def _score_group(name: str, kind: str, metric_name: str, records: Sequence[AnswerRecord]) -> ScoreGroup:
    metric = METRICS[metric_name]
    scores: dict[CellKey, QuestionScores] = {}
    for record in records:
        of_cell = scores.setdefault(cell_key(record), {})
        score = metric.score(record["prediction"], record["answers"])
        if score is not None:
            of_cell[record["set"], record["id"]] = score
    return ScoreGroup(name, kind, metric, scores)


def score_rows(groups: Iterable[ScoreGroup], records: Sequence[AnswerRecord], seed: int) -> Iterator[ScoreRow]:
    kept = _kept_shares(records)
    for group in tqdm(list(groups), desc="scores", leave=False, delay=2):
        for cell, scores in group.scores.items():
            score = estimate(group.metric, scores.values(), seed)
            if score is not None:
                from_full = None if cell[1] == FULL else group.difference((cell[0], FULL, FULL), cell, seed)
                share = kept.get((cell, group.set))
                yield ScoreRow(cell, group.set, group.kind, group.metric.name, score, share, from_full)


def _kept_shares(records: Sequence[AnswerRecord]) -> dict[tuple[CellKey, str], float | None]:
    """(cell, set) -> visual tokens kept, as a share of those before the reduction."""
    counts: dict[tuple[CellKey, str], list[int]] = {}
    for record in records:
        count = counts.setdefault((cell_key(record), record["set"]), [0, 0])
        count[0] += record["kept"]
        count[1] += record["visual_tokens"]
    return {key: kept / before if before else None for key, (kept, before) in counts.items()}


def paired_tests(groups: Iterable[ScoreGroup], seed: int) -> list[PairedTest]:
    """Checkpoints with the same method and budget, on every kind of question; methods of one checkpoint at the same
    budget, on all questions of a set."""
    tests: list[PairedTest] = []
    for group in tqdm(list(groups), desc="pairs", leave=False, delay=2):
        pairs = [pair for pair in combinations(group.scores, 2) if _comparable(*pair, group.kind == ALL_KINDS)]
        differences = [(pair, group.difference(*pair, seed)) for pair in pairs]
        known = [(pair, difference) for pair, difference in differences if difference is not None]
        corrected = holm([difference.p for _, difference in known])
        tests += [
            PairedTest(*pair, group.set, group.kind, group.metric.name, difference, p)
            for (pair, difference), p in zip(known, corrected, strict=True)
        ]
    return tests


def _comparable(first: CellKey, second: CellKey, across_methods: bool) -> bool:
    if first[1:] == second[1:]:
        return True
    return across_methods and first[0] == second[0] and first[2] == second[2] and first[2] != FULL
