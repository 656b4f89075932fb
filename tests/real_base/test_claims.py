"""The claims about the base of pretrained parts, evaluated on answers with a known outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.real_base.__main__ import main
from data.real_base.claims import BUDGETS, FULL, LAYERS, METHODS

QUESTIONS = 40
RIGHT = {"dart": 30, "random": 20, "fastv": 24, "learned": 40, "dart_8": 30}  # of the questions, the first so many


def write_answers(folder: Path, methods: dict[str, int]) -> None:
    cells = [(FULL, FULL, QUESTIONS), *((name, budget, right) for name, right in methods.items() for budget in BUDGETS)]
    records = [
        {
            "method": method, "budget": budget, "id": str(number), "answers": ["the cat"],
            "prediction": "the cat" if number < right else "the dog", "visual_tokens": 4, "kept": 2,
            "kept_tokens": "0-1" if method == "dart" else "1,3",
        }
        for method, budget, right in cells
        for number in range(QUESTIONS)
    ]  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_claims_hold_where_the_answers_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = {name: RIGHT.get(name, 10) for name in [*METHODS, *LAYERS.values()]}
    write_answers(tmp_path, methods)
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [90, 100]}}))
    assert main(["claims", str(tmp_path), f"output_dir={tmp_path}"]) == 0
    lines = (tmp_path / "claims.md").read_text().splitlines()
    verdicts = {int(line[2]): line.split(" | ")[-1].strip(" |") for line in lines if re.match(r"\| \d\. ", line)}
    # DART loses a quarter of the answers at 22.2%; FastV is above random.
    expected = {1: "yes", 2: "**no**", 3: "yes", 4: "**no**", 5: "yes", 6: "yes"}
    assert verdicts == expected
    assert "+25.0" in next(line for line in lines if line.startswith("| 3."))
    assert any(line.startswith("| DART | ") and "75.0 (" in line for line in lines)
    assert "| DART | 0.0 |" in lines
    assert "| FastV | 50.0 |" in lines


def test_a_comparison_without_a_method_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(tmp_path, {"dart": 1})
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [90, 100]}}))
    assert main(["claims", str(tmp_path), f"output_dir={tmp_path}"]) == 2
    assert "no answers of random / 0.111" in capsys.readouterr().err
