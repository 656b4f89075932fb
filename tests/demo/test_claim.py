"""The claim is evaluated on the answers alone, a miss is reported as a miss, and results are published completely."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.claim import PARTS, SECOND_SET, SECOND_TURN, SET, SHOWN, evaluate_claim, summarize, write_claim
from launch.publish import BEGIN, END, RESULTS, publish

QUESTIONS = 500
GOOD = {"control_full": 470, "adapted_full": 466, "adapted_0111": 462, "adapted_0056": 448, "control_dart": 330}


def answers(folder: Path, **right: int) -> Path:
    """results.jsonl in which each cell of the claim has so many right answers of QUESTIONS; 300 where nothing is
    given."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        ("control", "full", "full"): "control_full",
        ("adapted", "full", "full"): "adapted_full",
        ("adapted", "learned", "0.111"): "adapted_0111",
        ("adapted", "learned", "0.056"): "adapted_0056",
        ("control", "dart", "0.111"): "control_dart",
    }
    lines = []
    for cell in dict.fromkeys([*SHOWN, *(each for part in PARTS for each in (part.cell, part.against))]):
        lines += _lines(cell, SET, {**GOOD, **right}.get(names.get(cell, ""), 300))
    for checkpoint, method in SECOND_TURN:
        for turn in ("", ", second turn anew", ", second turn cached"):
            lines += _lines((checkpoint, method, "0.111"), SECOND_SET + turn, 20, 50)
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "table.md").write_text("# Comparison\n")
    return folder


def _lines(cell: tuple[str, str, str], of_set: str, right: int, number: int = QUESTIONS) -> list[dict[str, object]]:
    where = {**dict(zip(("checkpoint", "method", "budget"), cell, strict=True)), "set": of_set, "answers": ["red"]}
    return [{**where, "id": str(n), "prediction": "red" if n < right else "blue"} for n in range(number)]


def test_claim_holds(tmp_path: Path) -> None:
    verdict = evaluate_claim(answers(tmp_path), seed=3)
    assert verdict.holds and verdict.parts_hold == (True,) * 4
    assert [found.value for found in verdict.differences] == pytest.approx([-0.016, 0.264, -0.044, -0.008])
    assert verdict.second[0][0].n == 50


@pytest.mark.parametrize(
    ("right", "missed"),
    [
        ({"adapted_0111": 459}, 0),  # 2.2 points lost
        ({"control_dart": 388}, 1),  # 14.8 gained
        ({"adapted_0056": 444}, 2),  # 5.2 lost
        ({"adapted_full": 464}, 3),  # 1.2 lost
    ],
)
def test_each_part_can_be_missed_and_is_shown(tmp_path: Path, right: dict[str, int], missed: int) -> None:
    verdict = evaluate_claim(answers(tmp_path, **right), seed=0)
    assert [number for number, holds in enumerate(verdict.parts_hold) if not holds] == [missed]
    assert not verdict.holds
    summary = summarize([verdict])
    assert "holds for 0 of 1 seeds" in summary and f"**{100 * verdict.differences[missed].value:+.1f}" in summary


def test_missing_answers_are_an_error(tmp_path: Path) -> None:
    folder = answers(tmp_path)
    lines = (folder / "results.jsonl").read_text().splitlines()
    left = [line for line in lines if '"adapted", "method": "learned", "budget": "0.111"' not in line]
    (folder / "results.jsonl").write_text("\n".join(left))
    with pytest.raises(ValueError, match=r"adapted / learned / 0\.111"):
        evaluate_claim(folder, seed=0)


def test_every_seed_is_written_and_published(tmp_path: Path) -> None:
    run, root = tmp_path / "run", tmp_path / "checkout"
    verdicts = [evaluate_claim(answers(run / f"seed-{n}/compare", adapted_full=466 - 5 * n), seed=n) for n in (0, 1)]
    write_claim(verdicts, run, {"command": "bash launch/demo.sh", "device": "CPU", "took": "9 s"})
    found = json.loads((run / "claim.json").read_text())
    assert [seed["holds"] for seed in found["seeds"]] == [True, False]
    assert "1 of 2 seeds" in (run / "claim.md").read_text()

    (root / RESULTS).mkdir(parents=True)
    (root / RESULTS / "table_seed2.md").write_text("of an earlier run")
    page = root / RESULTS / "README.md"
    page.write_text(f"before\n{BEGIN}\nof an earlier run\n{END}\nafter\n")
    publish(run, root)
    names = {file.name for file in (root / RESULTS).iterdir()}
    assert names == {"README.md", "claim.md", "claim.json", "table_seed0.md", "table_seed1.md"}
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| seed |") and text.endswith(f"{END}\nafter\n")
    assert "1 of 2 seeds" in text and "full against control, full: -1.8" in text and "of an earlier run" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected one line"):
        publish(run, root)


def test_page_of_the_checkout_has_the_marks_of_the_table() -> None:
    text = (Path(__file__).parents[2] / RESULTS / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
