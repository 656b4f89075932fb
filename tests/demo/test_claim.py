"""The claim is evaluated on the answers alone, and a miss is reported as a miss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.claim import evaluate_claim, summarize, write_claim

QUESTIONS = 500


def answers(folder: Path, **right: int) -> Path:
    """results.jsonl in which each of the four cells has so many right answers of QUESTIONS."""
    folder.mkdir(parents=True, exist_ok=True)
    cells = {
        "control": ("control", "dart", "0.111"),
        "adapted": ("adapted", "dart", "0.111"),
        "control_full": ("control", "full", "full"),
        "adapted_full": ("adapted", "full", "full"),
    }
    lines = []
    for name, (checkpoint, method, budget) in cells.items():
        for number in range(QUESTIONS):
            prediction = "red" if number < right[name] else "blue"
            lines.append(
                {"checkpoint": checkpoint, "method": method, "budget": budget, "set": "shapes", "id": str(number)}
                | {"prediction": prediction, "answers": ["red"]}
            )
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_claim_holds_with_a_clear_gain_and_no_loss(tmp_path: Path) -> None:
    verdict = evaluate_claim(answers(tmp_path, control=300, adapted=400, control_full=470, adapted_full=465), seed=3)
    assert verdict.holds
    assert verdict.gain.value == pytest.approx(0.2)
    assert verdict.change_full.value == pytest.approx(-0.01)
    assert verdict.control.n == QUESTIONS


@pytest.mark.parametrize(
    ("right", "why"),
    [
        ({"control": 300, "adapted": 320, "control_full": 470, "adapted_full": 470}, "gained"),  # 4 points
        ({"control": 300, "adapted": 330, "control_full": 470, "adapted_full": 470}, "gained"),  # they overlap
        ({"control": 300, "adapted": 400, "control_full": 470, "adapted_full": 455}, "kept_full"),  # 3 points lost
    ],
)
def test_claim_does_not_hold(tmp_path: Path, right: dict[str, int], why: str) -> None:
    verdict = evaluate_claim(answers(tmp_path, **right), seed=0)
    assert not getattr(verdict, why)
    assert not verdict.holds
    assert "does not hold" in summarize([verdict]) and "0 of 1 seeds" in summarize([verdict])


def test_missing_answers_are_an_error(tmp_path: Path) -> None:
    folder = answers(tmp_path, control=1, adapted=1, control_full=1, adapted_full=1)
    lines = (folder / "results.jsonl").read_text().splitlines()
    left = [line for line in lines if '"adapted", "method": "dart"' not in line]
    (folder / "results.jsonl").write_text("\n".join(left))
    with pytest.raises(ValueError, match=r"adapted / dart / 0\.111"):
        evaluate_claim(folder, seed=0)


def test_every_seed_is_written(tmp_path: Path) -> None:
    good = evaluate_claim(answers(tmp_path / "a", control=300, adapted=400, control_full=470, adapted_full=465), seed=0)
    bad = evaluate_claim(answers(tmp_path / "b", control=300, adapted=301, control_full=470, adapted_full=465), seed=1)
    write_claim([good, bad], tmp_path, {"command": "bash launch/demo.sh", "device": "CPU"})
    found = json.loads((tmp_path / "claim.json").read_text())
    assert [seed["holds"] for seed in found["seeds"]] == [True, False]
    assert "1 of 2 seeds" in (tmp_path / "claim.md").read_text()
