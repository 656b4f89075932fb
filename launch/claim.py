"""The pre-registered claim, evaluated on the answers of one comparison a seed.

It was written before any test question was answered: at 11.1% of the visual tokens the adapted model beats the control,
reduced the same way without training, by at least 5 points with intervals that do not overlap; with full tokens it
loses at most 2 points against the control.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dart_train.common.metrics import METRICS
from dart_train.common.statistics import Estimate, PairedDifference, estimate, paired_difference

METHOD, BUDGET, FULL = "dart", "0.111", "full"
GAIN, LOSS = 0.05, 0.02
METRIC = METRICS["exact_match"]
Question = tuple[str, str]  # set and id
Scores = Mapping[Question, float]


@dataclass(frozen=True)
class Verdict:
    """One seed: the control and the adapted model on the same questions, reduced and with full tokens."""

    seed: int
    control: Estimate
    adapted: Estimate
    gain: PairedDifference
    control_full: Estimate
    adapted_full: Estimate
    change_full: PairedDifference

    @property
    def gained(self) -> bool:
        return self.gain.value >= GAIN and self.adapted.low > self.control.high

    @property
    def kept_full(self) -> bool:
        return self.change_full.value >= -LOSS

    @property
    def holds(self) -> bool:
        return self.gained and self.kept_full

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "gained": self.gained, "kept_full": self.kept_full, "holds": self.holds}


def evaluate_claim(folder: Path, seed: int) -> Verdict:
    """folder: of a comparison, with its results.jsonl."""
    answers = list(_lines(folder / "results.jsonl"))
    reduced = [_scores(answers, name, METHOD, BUDGET) for name in ("control", "adapted")]
    full = [_scores(answers, name, FULL, FULL) for name in ("control", "adapted")]
    (control, adapted), (control_full, adapted_full) = (map(_figure, both) for both in (reduced, full))
    return Verdict(seed, control, adapted, _paired(reduced), control_full, adapted_full, _paired(full))


def summarize(verdicts: Sequence[Verdict]) -> str:
    """A table in Markdown, misses included, and a closing sentence."""
    true = sum(verdict.holds for verdict in verdicts)
    lines = [
        f"| seed | control, {METHOD} {BUDGET} | adapted, {METHOD} {BUDGET} | gain | control, full | adapted, full "
        "| change | claim |",
        "|---|---|---|---|---|---|---|---|",
        *map(_row, verdicts),
        "",
        f"Pre-registered: a gain of at least {100 * GAIN:.0f} points with separate intervals, and at most "
        f"{100 * LOSS:.0f} points lost at full tokens. It holds for {true} of {len(verdicts)} seeds.",
    ]
    return "\n".join(lines)


def write_claim(verdicts: Sequence[Verdict], folder: Path, how: Mapping[str, Any]) -> None:
    """claim.json and claim.md; `how`: command, device, versions."""
    found = {"claim": {"gain": GAIN, "loss": LOSS}, "seeds": [verdict.to_dict() for verdict in verdicts], **how}
    (folder / "claim.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    facts = "".join(f"- {name}: {value}\n" for name, value in how.items())
    text = f"# The claim\n\n{summarize(verdicts)}\n\nExact match in percent, 95% intervals.\n\n{facts}"
    (folder / "claim.md").write_text(text, encoding="utf-8")


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _scores(answers: Iterable[Mapping[str, Any]], checkpoint: str, method: str, budget: str) -> Scores:
    cell = (checkpoint, method, budget)
    mine = [line for line in answers if (line["checkpoint"], line["method"], line["budget"]) == cell]
    if not mine:
        raise ValueError(f"no answers of {' / '.join(cell)}: the comparison did not include them")
    scored = {(line["set"], line["id"]): METRIC.score(line["prediction"], line["answers"]) for line in mine}
    return {question: score for question, score in scored.items() if score is not None}


def _figure(scores: Scores) -> Estimate:
    found = estimate(METRIC, scores.values())
    assert found is not None
    return found


def _paired(both: Sequence[Scores]) -> PairedDifference:
    """The second less the first, question by question."""
    first, second = both
    if first.keys() != second.keys():
        raise ValueError("the two models answered different questions")
    found = paired_difference(METRIC, list(first.values()), [second[question] for question in first])
    assert found is not None
    return found


def _row(verdict: Verdict) -> str:
    cells = [
        str(verdict.seed),
        _share(verdict.control),
        _share(verdict.adapted),
        _points(verdict.gain),
        _share(verdict.control_full),
        _share(verdict.adapted_full),
        _points(verdict.change_full),
        "holds" if verdict.holds else "does not hold",
    ]
    return f"| {' | '.join(cells)} |"


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _points(found: PairedDifference) -> str:
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
