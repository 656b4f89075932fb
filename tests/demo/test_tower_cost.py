"""`python -m launch.tower_cost`: its commands without running them, and its claim on the answers alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dart_train.config import load_recipe
from dart_train.evaluation.comparison_grid import grid_cells
from launch import tower_cost
from launch.claim import Cell
from launch.demo import Commands
from launch.tower_cost import ALONE, HALF, PAIR, TRAINED, UNTRAINED
from tests.demo.test_serving_cost import recipes
from tests.fixtures.run_scene import ROOT

IMAGES, EACH, SEEDS = 20, 5, 2  # EACH: questions of an image


def write_answers(folder: Path, seed: int, right: dict[Cell, int]) -> None:
    """right: of IMAGES, those whose questions a cell answers."""
    folder.mkdir(parents=True)
    lines = [
        dict(zip(("checkpoint", "method", "budget"), cell, strict=True))
        | {"set": f"seed {seed}", "id": f"test-{n:06d}-{kind}", "answers": ["red"]}
        | {"prediction": "red" if n < right.get(cell, IMAGES // 2) else "blue"}
        for cell in tower_cost.SHOWN
        for n in range(IMAGES)
        for kind in range(EACH)
    ]
    (folder / "results.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


COST = "method,kept,rows,new_tokens,faster_prefill,faster_prefill_q1,faster_prefill_q3,faster_total,faster_total_q1,"
COST += "faster_total_q3,bound\nfull,4608,32,8,1,1,1,1,1,1,1\nhalf of the tower,1024,32,8,2,1.9,2.1,1.5,1.4,1.6,2.24\n"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    ran: list[list[str]] = []
    monkeypatch.setattr(Commands, "run", lambda self, title, command: ran.append(list(command)))
    monkeypatch.setattr(sys, "argv", ["tower_cost", "--out", str(tmp_path), "--seeds", str(SEEDS)])
    monkeypatch.chdir(ROOT)
    for seed in range(SEEDS):
        write_answers(tmp_path / str(seed) / "compare", seed, {})
    (tmp_path / "time").mkdir()
    (tmp_path / "time" / "cost.csv").write_text(COST)
    assert tower_cost.main() == 0
    return ran


def test_the_two_trainings_differ_in_the_reduction_alone(commands: list[list[str]]) -> None:
    half, alone = (load_recipe(*each) for each in recipes(commands, "train")[:2])
    assert half.reduction.tower == tower_cost.TOWER and alone.reduction.tower is None
    assert (half.reduction.reducers()[0].keep, alone.reduction.reducers()[0].keep) == (32, 18)
    for name in ("model", "parts", "data", "distill"):
        assert getattr(half, name) == getattr(alone, name)
    one, two = vars(half.train), vars(alone.train)
    assert {key for key in one if one[key] != two[key]} == {"output_dir"}


def test_each_comparison_has_all_cells_and_questions_of_its_own(commands: list[list[str]]) -> None:
    *compared, timed = [load_recipe(*each) for each in recipes(commands, "compare")]
    for recipe in compared:
        assert {*tower_cost.SHOWN} <= {cell.key for cell in grid_cells(recipe)} and not recipe.compare.timing
    assert len({recipe.compare.sets[0].path for recipe in compared}) == len(compared) == SEEDS
    ways = {(cell.method, cell.budget) for cell in grid_cells(timed)}
    assert timed.compare.timing and {(HALF, "32"), (ALONE, "18"), ("full", "full")} <= ways


def test_time_is_shown_beside_its_bound(tmp_path: Path) -> None:
    (tmp_path / "cost.csv").write_text(COST)
    last = tower_cost.time_table(tmp_path)[-1]
    assert last == "| half of the tower | 32 | 2.00 (1.90-2.10) | 1.50 (1.40-1.60) | 2.24 |"


def test_intervals_resample_images(tmp_path: Path) -> None:
    folders = [tmp_path / str(seed) for seed in range(SEEDS)]
    for seed, folder in enumerate(folders):
        write_answers(folder, seed, {TRAINED[0]: 13, TRAINED[1]: 15, UNTRAINED[0]: 15, UNTRAINED[1]: 10})
    text = PAIR.summarize(folders, "here")
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    better, _, worse = (lines[part.name] for part in tower_cost.PARTS)
    # 4 of 40 images: about +-9 points; were the 200 questions independent, +-4
    assert "| +10.0 (+2.5 to +20.0) | yes |" in better
    assert "| **-10.0 (-20.0 to -2.5)** | no |" in worse and "200 questions in all" in text
