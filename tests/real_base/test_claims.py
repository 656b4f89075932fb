"""The claims about the base of pretrained parts, evaluated on answers with a known outcome."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data.real_base.__main__ import main
from data.real_base.answers import FULL, Cell, ComparedAnswers
from data.real_base.claims import CLAIMS, NAMES, TEXTS
from data.real_base.evidence import BUDGETS, CHECKPOINTS, LAYERS, SOURCES

QUESTIONS = 40
EVERY = [*SOURCES, *(("base", name) for name in LAYERS.values())]
KINDS = ("label", "price")


def write_answers(folder: Path, right: dict[Cell, int], otherwise: int, sets: tuple[str, ...]) -> None:
    """right: how many questions of a cell are answered right, the first ones; `otherwise` in all other cells."""
    cells = [Cell(name, checkpoint) for name in sets for checkpoint in CHECKPOINTS]
    cells += [Cell(name, *source, budget) for name in sets for source in dict.fromkeys(EVERY) for budget in BUDGETS]
    records = [
        {
            **cell._asdict(), "id": str(number), "answers": ["the cat"], "kind": KINDS[number % 2],
            "prediction": "the cat" if number < right.get(cell, otherwise) else "the dog", "visual_tokens": 4,
            "kept": 2, "kept_tokens": "0-1" if (cell.checkpoint, cell.method) == ("base", "dart") else "1,3",
        }
        for cell in cells
        for number in range(QUESTIONS)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluate(folder: Path, named: int, right: dict[Cell, int], otherwise: int) -> list[str]:
    """The lines of claims.md."""
    write_answers(folder / "names", right, otherwise, (NAMES,))
    write_answers(folder / "texts", right, otherwise, (TEXTS,))
    (folder / "measured.json").write_text(json.dumps({"seen": {"what": [named, 100]}}))
    compared = [str(folder / "names"), "--texts", str(folder / "texts")]
    assert main(["claims", *compared, f"output_dir={folder}"]) == 0
    return (folder / "names" / "claims.md").read_text().splitlines()


def verdicts(lines: list[str]) -> dict[int, str]:
    return {int(row[1]): row[2] for line in lines if (row := re.match(r"\| (\d+)\. .* \| (\S*) \|$", line))}


@pytest.mark.parametrize("number", range(2, len(CLAIMS) + 2))
def test_each_claim_depends_on_its_two_cells(tmp_path: Path, number: int) -> None:
    """With all answers of its first cell right and none of its second a claim holds; with the opposite it does not."""
    claim = CLAIMS[number - 2]
    for cell, against in ((claim.cell, claim.against), (claim.against, claim.cell)):
        sign = -1 if claim.holds.__name__ == "below" else 1
        found = verdicts(evaluate(tmp_path, 90, {cell: QUESTIONS, against: 0}, 20))[number]
        assert found == ("yes" if (cell == claim.cell) == (sign == 1) else "**no**")


def test_tables_show_what_was_answered(tmp_path: Path) -> None:
    lines = evaluate(
        tmp_path, 70, {Cell(NAMES, "base", "dart", "0.111"): 30, Cell(TEXTS, "base", "dart", "0.111"): 1}, 10
    )
    assert "| 1. at least 80% of seen things named | 70.0 | **no** |" in lines
    names, texts = (next(i for i, line in enumerate(lines) if line == f"## {title}") for title in ("Names", "Texts"))
    assert any(line.startswith("| base | DART |") and "75.0 (" in line for line in lines[names:texts])
    assert "| base | DART | 0.0 |" in lines  # its kept tokens are in the first half
    assert "| base | FastV | 50.0 |" in lines
    assert any(line.startswith("| base | DART | 5.0 (") and "| 0.0 (" in line for line in lines[texts:])  # label, price
    full = [line for line in lines[names:texts] if "| full tokens | 25.0 (" in line]
    assert len(full) == 4  # base, control and two adapted models; at full tokens a scorer changes nothing


def test_a_claim_without_answers_is_not_evaluated(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [80, 100]}}))
    assert main(["claims", str(tmp_path), f"output_dir={tmp_path}"]) == 0
    text = (tmp_path / "claims.md").read_text()
    assert "| 1. at least 80% of seen things named | 80.0 | yes |" in text
    assert f"| 2. {CLAIMS[0].text} | not evaluated: no answers of " in text


def test_claims_name_cells_that_the_comparisons_have() -> None:
    """Of a recipe that lacks one of them, a claim would silently stay without a verdict."""
    import yaml

    root, cells = Path(__file__).parents[2], set()
    for file in ("real_compare.yaml", "real_reading.yaml"):
        compare = yaml.safe_load((root / "recipes" / file).read_text())["compare"]
        (questions,) = (each["name"] for each in compare["sets"])
        cells |= {Cell(questions, checkpoint) for checkpoint in compare["checkpoints"]}
        for method in compare["methods"]:
            for checkpoint in method["checkpoints"]:
                for budget in method.get("budgets", compare["budgets"]):
                    cells.add(Cell(questions, checkpoint, method.get("name", method["method"]), f"{budget:g}"))
    for claim in CLAIMS:
        assert {claim.cell, claim.against} <= cells
    assert {(cell.checkpoint, cell.method) for cell in cells if cell.method != FULL} == set(EVERY)


def test_answers_to_different_questions_are_not_compared(tmp_path: Path) -> None:
    write_answers(tmp_path, {}, 10, (NAMES,))
    answers = ComparedAnswers([tmp_path])
    first, second = Cell(NAMES, "base"), Cell(NAMES, "control")
    del answers.scores[second]["3"]
    with pytest.raises(ValueError, match="answered different questions"):
        answers.difference(first, second)


def test_folder_without_a_comparison_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "measured.json").write_text(json.dumps({"seen": {"what": [80, 100]}}))
    assert main(["claims", str(tmp_path / "nothing"), f"output_dir={tmp_path}"]) == 2
    assert "nothing: no results.jsonl, expected the folder of a finished comparison" in capsys.readouterr().err
