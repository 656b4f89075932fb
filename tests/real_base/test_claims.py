"""The claims about the base of pretrained parts, evaluated on answers with a known outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path

from data.real_base.__main__ import main
from data.real_base.claims import BUDGETS, FULL, LAYERS, SOURCES

QUESTIONS = 40
RIGHT = {  # of the questions, the first so many
    ("base", "dart"): 30, ("base", "random"): 20, ("base", "fastv"): 24, ("base", "dart_8"): 30,
    ("scorer_8", "learned_8"): 30, ("learned", "learned_8"): 36, ("adapted", "dart"): 36, ("control", "dart"): 36,
}  # fmt: skip


def write_answers(folder: Path, sources: dict[tuple[str, str], int]) -> None:
    cells = [(name, FULL, FULL, QUESTIONS) for name in ("base", "control", "adapted", "learned")]
    cells += [(*source, budget, right) for source, right in sources.items() for budget in BUDGETS]
    records = [
        {
            "checkpoint": checkpoint, "method": method, "budget": budget, "id": str(number), "answers": ["the cat"],
            "prediction": "the cat" if number < right else "the dog", "visual_tokens": 4, "kept": 2,
            "kept_tokens": "0-1" if (checkpoint, method) == ("base", "dart") else "1,3",
        }
        for checkpoint, method, budget, right in cells
        for number in range(QUESTIONS)
    ]  # fmt: skip
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_claims_hold_where_the_answers_say_so(tmp_path: Path) -> None:
    every = [*SOURCES, *(("base", name) for name in LAYERS.values())]
    write_answers(tmp_path, {source: RIGHT.get(source, 10) for source in every})
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [90, 100]}}))
    assert main(["claims", str(tmp_path), f"output_dir={tmp_path}"]) == 0
    lines = (tmp_path / "claims.md").read_text().splitlines()
    found = {int(row[1]): row[2] for line in lines if (row := re.match(r"\| (\d+)\. .* \| (\S*) \|$", line))}
    # DART loses a quarter of the answers at 22.2%; FastV is above random; the scorer equals DART at its layer; the
    # adapted model equals the control, and both adapted models lose a tenth.
    assert [number for number, holds in found.items() if holds == "**no**"] == [2, 4, 6, 8, 13]
    assert [number for number, holds in found.items() if holds == "yes"] == [1, 3, 5, 7, 9, 10, 11, 12]
    assert "+25.0" in next(line for line in lines if line.startswith("| 3."))
    assert any(line.startswith("| base | DART | ") and "75.0 (" in line for line in lines)
    assert "| base | DART | 0.0 |" in lines
    assert "| base | FastV | 50.0 |" in lines
    assert len([line for line in lines if "| full tokens | 100.0 (" in line]) == 4


def test_a_claim_without_answers_is_not_evaluated(tmp_path: Path) -> None:
    write_answers(tmp_path, {("base", "dart"): 1})
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [70, 100]}}))
    assert main(["claims", str(tmp_path), f"output_dir={tmp_path}"]) == 0
    text = (tmp_path / "claims.md").read_text()
    assert "| 1. at least 80% of seen things named | 70.0 | **no** |" in text
    assert "| 3. DART above random at 11.1% | not evaluated: no answers of base / random / 0.111 |  |" in text
