"""`python -m launch.serving_cost`: its commands without running them, and its claim on the answers alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation.comparison_grid import grid_cells
from dart_train.reduction.servable import why_not_servable
from launch import serving_cost
from launch.claim import Cell
from launch.demo import Commands
from tests.fixtures.run_scene import ROOT

QUESTIONS, SEEDS = 100, 2
GOOD = {("trained at K = 0", "K = 0", "0.222"): 81, ("trained at K = 2", "K = 2", "0.222"): 82}


def write_answers(folder: Path, seed: int, right: dict[Cell, int]) -> None:
    folder.mkdir(parents=True)
    lines = [
        dict(zip(("checkpoint", "method", "budget"), cell, strict=True))
        | {"set": f"seed {seed}", "id": str(n), "answers": ["red"]}
        | {"prediction": "red" if n < right.get(cell, 80) else "blue"}
        for cell in serving_cost.SHOWN
        for n in range(QUESTIONS)
    ]
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    ran: list[list[str]] = []
    monkeypatch.setattr(Commands, "run", lambda self, title, command: ran.append(list(command)))
    monkeypatch.setattr(sys, "argv", ["serving_cost", "--out", str(tmp_path), "--seeds", str(SEEDS)])
    monkeypatch.chdir(ROOT)
    for seed in range(SEEDS):
        write_answers(tmp_path / str(seed) / "compare", seed, GOOD)
    assert serving_cost.main() == 0
    return ran


def recipes(commands: list[list[str]], command: str) -> list[tuple[str, list[str]]]:
    found = [(each, each.index(command)) for each in commands if command in each]
    return [(each[at + 1], each[at + 2 :]) for each, at in found]


def test_the_two_trainings_differ_in_the_reduction_alone(commands: list[list[str]]) -> None:
    first, later = (load_recipe(*each) for each in recipes(commands, "train")[:2])
    assert why_not_servable(first.reduction.reducers()) == [] and later.reduction.reducers()[0].layer == 2
    assert first.reduction.schedule == later.reduction.schedule and first.distill == later.distill
    for name in ("model", "parts", "data"):
        assert getattr(first, name) == getattr(later, name)
    one, two = vars(first.train), vars(later.train)
    assert {key for key in one if one[key] != two[key]} == {"output_dir"}


def test_each_comparison_has_all_cells_and_questions_of_its_own(commands: list[list[str]]) -> None:
    compared = [load_recipe(*each) for each in recipes(commands, "compare")]
    for recipe in compared:
        assert {*serving_cost.SHOWN} <= {cell.key for cell in grid_cells(recipe)}
    assert len({recipe.compare.sets[0].path for recipe in compared}) == len(compared) == SEEDS


def test_claim_is_evaluated_on_the_questions_of_all_seeds(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(SEEDS)]
    write_answers(folders[0], 0, GOOD)
    write_answers(folders[1], 1, {("trained at K = 2", "K = 2", "0.111"): 90})
    text = serving_cost.PAIR.summarize(folders, "here")
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    held, missed = (lines[part.name] for part in serving_cost.PARTS[:2])
    assert "| -2 | -0.5 (" in held and " | yes | " in held
    assert "| -4 | **-5.0 (" in missed and " | no | " in missed and "-10.0 (" in missed
    assert "200 questions in all" in text
