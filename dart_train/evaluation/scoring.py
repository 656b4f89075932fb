"""From answers to figures: table.csv, and what differs from what. A pure function of results.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from tqdm import tqdm

from ..common.metrics import METRICS, Metric
from ..common.statistics import Estimate, PairedDifference, difference, figure, holm
from ..config import Compare, QuestionSet
from .answer_store import Line
from .comparison_grid import FULL

ALL = "all"
Row = tuple[str, str, str]  # checkpoint, method, budget
Scores = dict[tuple[str, str], float]  # (set, id): score


@dataclass(frozen=True)
class Entry:
    """One line of table.csv. `kept`: share of the visual tokens; `from_full`: against full tokens of the same
    checkpoint, None where it is those."""

    row: Row
    set: str
    kind: str
    metric: str
    figure: Estimate
    kept: float | None
    from_full: PairedDifference | None


@dataclass(frozen=True)
class Pair:
    """second less first. p_holm: p, corrected for the number of pairs that are asked about in the same way."""

    first: Row
    second: Row
    set: str
    kind: str
    metric: str
    difference: PairedDifference
    p_holm: float


@dataclass(frozen=True)
class Group:
    """Questions that one figure is of: a kind of a set, or all of it. scores: of each row."""

    set: str
    kind: str
    metric: Metric
    scores: Mapping[Row, Scores]

    def apart(self, first: Row, second: Row, seed: int) -> PairedDifference | None:
        """On the questions that both have."""
        one, other = self.scores.get(first, {}), self.scores.get(second, {})
        shared = [key for key in one if key in other]
        return difference(self.metric, [one[key] for key in shared], [other[key] for key in shared], seed)


def groups(lines: Sequence[Line], say: Compare, sets: Mapping[str, QuestionSet]) -> list[Group]:
    """For each set all questions first, then kind by kind; each in every metric that was asked for."""
    found = []
    for name in dict.fromkeys(line["set"] for line in lines):
        mine = [line for line in lines if line["set"] == name]
        kinds = sorted({line["kind"] for line in mine} - {""})
        chosen = sets.get(name)
        usual = (chosen.metrics if chosen else ()) or say.metrics
        found += [_group(name, ALL, metric, mine) for metric in dict.fromkeys(usual)]
        for kind in kinds:
            of_kind = [line for line in mine if line["kind"] == kind]
            names = (chosen.kind_metrics.get(kind) if chosen else None) or usual
            found += [_group(name, kind, metric, of_kind) for metric in dict.fromkeys(names)]
    return [group for group in found if any(group.scores.values())]


def _group(name: str, kind: str, metric_name: str, lines: Sequence[Line]) -> Group:
    metric = METRICS[metric_name]
    scores: dict[Row, Scores] = {}
    for line in lines:
        score = metric.score(line["prediction"], line["answers"])
        mine = scores.setdefault(row_of(line), {})
        if score is not None:
            mine[line["set"], line["id"]] = score
    return Group(name, kind, metric, scores)


def row_of(line: Line) -> Row:
    return (line["checkpoint"], line["method"], line["budget"])


def entries(found: Iterable[Group], lines: Sequence[Line], seed: int) -> Iterator[Entry]:
    shares = kept_shares(lines)
    for group in tqdm(list(found), desc="figures", leave=False, delay=2):
        for row, scores in group.scores.items():
            value = figure(group.metric, scores.values(), seed)
            if value is not None:
                apart = None if row[1] == FULL else group.apart((row[0], FULL, FULL), row, seed)
                yield Entry(row, group.set, group.kind, group.metric.name, value, shares.get((row, group.set)), apart)


def kept_shares(lines: Sequence[Line]) -> dict[tuple[Row, str], float | None]:
    """Visual tokens kept, as a share of those that came in, of each row and set."""
    kept: dict[tuple[Row, str], list[int]] = {}
    for line in lines:
        sums = kept.setdefault((row_of(line), line["set"]), [0, 0])
        sums[0] += line["kept"]
        sums[1] += line["visual_tokens"]
    return {key: after / before if before else None for key, (after, before) in kept.items()}


def pairs(found: Iterable[Group], seed: int) -> list[Pair]:
    """Checkpoints at the same method and budget, on every kind; methods of a checkpoint at the same budget, on all
    questions of a set."""
    made: list[Pair] = []
    for group in tqdm(list(found), desc="pairs", leave=False, delay=2):
        asked = [pair for pair in combinations(group.scores, 2) if _comparable(*pair, group.kind == ALL)]
        apart = [(pair, group.apart(*pair, seed)) for pair in asked]
        known = [(pair, found) for pair, found in apart if found is not None]
        corrected = holm([found.p for _, found in known])
        made += [
            Pair(*pair, group.set, group.kind, group.metric.name, found, p)
            for (pair, found), p in zip(known, corrected, strict=True)
        ]
    return made


def _comparable(first: Row, second: Row, methods_too: bool) -> bool:
    if first[1:] == second[1:]:
        return True
    return methods_too and first[0] == second[0] and first[2] == second[2] and first[2] != FULL
