"""The pre-registered claim, evaluated on the answers of one comparison a seed.

It was written before any test question was answered: at 11.1% of the visual tokens the trained choice on the adapted
model loses at most 2 points against the control at full tokens, and beats the control with DART by at least 15; at 5.6%
it loses at most 5 points; with full tokens the adapted model loses at most 1. The control is fine-tuned as long, on the
same samples, with full tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dart_train.common.metrics import METRICS
from dart_train.common.statistics import Estimate, PairedDifference, estimate, paired_difference

SET, METRIC = "shapes", METRICS["exact_match"]
SECOND_SET = "shapes, some"  # of the second turns
FULL = "full"
Cell = tuple[str, str, str]  # checkpoint, method, budget
Question = tuple[str, str]  # set and id
Scores = Mapping[Question, float]


@dataclass(frozen=True)
class Part:
    """One part of the claim: `cell` less `against` is at least `least`, as a share of the questions."""

    name: str
    cell: Cell
    against: Cell
    least: float


CONTROL: Cell = ("control", FULL, FULL)
PARTS = (
    Part("11.1% against control, full", ("adapted", "learned", "0.111"), CONTROL, -0.02),
    Part("11.1% against control, DART 11.1%", ("adapted", "learned", "0.111"), ("control", "dart", "0.111"), 0.15),
    Part("5.6% against control, full", ("adapted", "learned", "0.056"), CONTROL, -0.05),
    Part("full against control, full", ("adapted", FULL, FULL), CONTROL, -0.01),
)
# Shown with the claim, and not part of it: the scorer on the untouched base, and DART on the adapted model.
SHOWN: tuple[Cell, ...] = (
    ("base", FULL, FULL), ("base", "learned", "0.111"), ("base", "learned", "0.056"), ("base", "dart", "0.111"),
    CONTROL, ("control", "dart", "0.111"), ("control", "dart", "0.056"),
    ("adapted", FULL, FULL), ("adapted", "learned", "0.111"), ("adapted", "learned", "0.056"),
    ("adapted", "dart", "0.111"),
)  # fmt: skip
SECOND_TURN = tuple(
    (checkpoint, method) for checkpoint in ("adapted", "base") for method in ("learned", "learned, a quarter", "dart")
)  # at 11.1%


@dataclass(frozen=True)
class Verdict:
    """One seed. differences: of each part, in the order of PARTS. shown: the score of each cell of SHOWN. second: of
    each of SECOND_TURN, the scores of a first turn, of a second turn anew, and of one from the first one's cache."""

    seed: int
    differences: tuple[PairedDifference, ...]
    shown: tuple[Estimate, ...]
    second: tuple[tuple[Estimate, Estimate, Estimate], ...]

    @property
    def parts_hold(self) -> tuple[bool, ...]:
        return tuple(found.value >= part.least for part, found in zip(PARTS, self.differences, strict=True))

    @property
    def holds(self) -> bool:
        return all(self.parts_hold)

    def to_dict(self) -> dict[str, Any]:
        parts = [
            {**asdict(part), **asdict(found), "holds": holds}
            for part, found, holds in zip(PARTS, self.differences, self.parts_hold, strict=True)
        ]
        shown = {" / ".join(cell): asdict(score) for cell, score in zip(SHOWN, self.shown, strict=True)}
        names = ("first", "anew", "cached")
        second = {
            " / ".join(cell): dict(zip(names, map(asdict, scores), strict=True))
            for cell, scores in zip(SECOND_TURN, self.second, strict=True)
        }
        return {"seed": self.seed, "holds": self.holds, "parts": parts, "scores": shown, "second_turn": second}


def evaluate_claim(folder: Path, seed: int) -> Verdict:
    """folder: of a comparison, with its results.jsonl."""
    answers = list(read_lines(folder / "results.jsonl"))
    differences = tuple(paired(scores_of(answers, part.against), scores_of(answers, part.cell)) for part in PARTS)
    shown = tuple(figure(scores_of(answers, cell)) for cell in SHOWN)
    sets = (SECOND_SET, f"{SECOND_SET}, second turn anew", f"{SECOND_SET}, second turn cached")
    second = []
    for checkpoint, method in SECOND_TURN:
        first, anew, cached = (figure(scores_of(answers, (checkpoint, method, "0.111"), name)) for name in sets)
        second.append((first, anew, cached))
    return Verdict(seed, differences, shown, tuple(second))


def summarize(verdicts: Sequence[Verdict]) -> str:
    """Tables in Markdown, misses included."""
    true = sum(verdict.holds for verdict in verdicts)
    goals = [f"{part.name} (at least {100 * part.least:+.0f})" for part in PARTS]
    seeds = [str(verdict.seed) for verdict in verdicts]
    claim = [
        [str(verdict.seed), *map(marked, verdict.differences, verdict.parts_hold), "yes" if verdict.holds else "no"]
        for verdict in verdicts
    ]
    scores = [[*cell, *(percent(verdict.shown[number]) for verdict in verdicts)] for number, cell in enumerate(SHOWN)]
    second = [
        [*cell, str(verdict.seed), *map(percent, verdict.second[number])]
        for number, cell in enumerate(SECOND_TURN)
        for verdict in verdicts
    ]
    lines = [
        *table_lines(["seed", *goals, "holds"], claim),
        "",
        f"Differences in points, with 95% intervals; a part that does not hold is bold. The claim holds for {true} of "
        f"{len(verdicts)} seeds.",
        "",
        *table_lines(["checkpoint", "method", "budget", *(f"seed {seed}" for seed in seeds)], scores),
        "",
        "The second question about an image, at 11.1%: answered after a prefill of its own (*anew*), or from the "
        "tokens that the first question kept (*cached*).",
        "",
        *table_lines(["checkpoint", "method", "seed", "first turn", "second, anew", "second, cached"], second),
    ]
    return "\n".join(lines)


def write_claim(verdicts: Sequence[Verdict], folder: Path, how: Mapping[str, Any]) -> None:
    """claim.json and claim.md; `how`: command, device, versions."""
    found = {"claim": list(map(asdict, PARTS)), "seeds": [verdict.to_dict() for verdict in verdicts], **how}
    (folder / "claim.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    facts = "".join(f"- {name}: {value}\n" for name, value in how.items())
    text = f"# The claim\n\n{summarize(verdicts)}\n\nExact match in percent, 95% intervals.\n\n{facts}"
    (folder / "claim.md").write_text(text, encoding="utf-8")


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def scores_of(answers: Iterable[Mapping[str, Any]], cell: Cell, of_set: str = SET) -> Scores:
    mine = [
        line for line in answers if (line["checkpoint"], line["method"], line["budget"], line["set"]) == (*cell, of_set)
    ]
    if not mine:
        raise ValueError(f"no answers of {' / '.join(cell)} in {of_set}: the comparison did not include them")
    scored = {(line["set"], line["id"]): METRIC.score(line["prediction"], line["answers"]) for line in mine}
    return {question: score for question, score in scored.items() if score is not None}


def figure(scores: Scores) -> Estimate:
    found = estimate(METRIC, scores.values())
    assert found is not None
    return found


def paired(first: Scores, second: Scores) -> PairedDifference:
    """The second less the first, question by question."""
    if first.keys() != second.keys():
        raise ValueError("the two cells answered different questions")
    found = paired_difference(METRIC, list(first.values()), [second[question] for question in first])
    assert found is not None
    return found


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def marked(found: PairedDifference, holds: bool) -> str:
    text = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return text if holds else f"**{text}**"


def percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} ({100 * found.low:.1f}-{100 * found.high:.1f})"
