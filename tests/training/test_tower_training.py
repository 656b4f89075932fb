"""Recipes with a stage in the vision tower: trained, saved, resumed, loaded and compared with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dart_train
from dart_train import DART, TowerDART
from dart_train.config import RecipeError, load_recipe
from dart_train.evaluation.comparison_grid import grid_cells
from dart_train.reduction.schedule import Elastic, Fixed, Progressive, tower_keep_at_step
from dart_train.training.run import run
from tests.fixtures.rank_jobs import Job, RankRuns, stage_jobs
from tests.fixtures.run_scene import losses, make_recipe

TOWER = ["reduction.tower={layer: 1, keep: 0.5}", "parts.vision.mode=lora", "reduction.schedule={kind: elastic}"]


def train(folder: Path, name: str, *overrides: str, family: str = "llava") -> Path:
    result = run(load_recipe(make_recipe(folder, family), [*overrides, f"train.output_dir={folder / name}"]))
    assert result.stopped is None and result.checkpoint is not None
    return result.checkpoint


def test_tower_is_trained_with_saved_and_loaded(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, "run", *TOWER, "train.max_steps=6")
    assert {line["keep_tower"] for line in losses(tmp_path / "run")} <= {1.0, 0.75, 0.5}
    assert json.loads((checkpoint / "reducer.json").read_text())["tower"] == {"layer": 1, "keep": 0.5, "pivots": 4}
    loaded = dart_train.load(checkpoint, device="cpu")
    assert loaded.attached is not None and loaded.attached.tower == TowerDART(layer=1, keep=0.5)
    exported = dart_train.export(checkpoint, tmp_path / "exported")
    again = dart_train.load(exported, device="cpu")
    assert again.attached is not None and again.attached.tower == TowerDART(layer=1, keep=0.5)


def test_another_reduction_is_loaded_as_it_is_given(tmp_path: Path) -> None:
    checkpoint = train(tmp_path, "run", *TOWER, "train.max_steps=1")
    by_name = dart_train.load(checkpoint, "random", device="cpu").attached
    given = dart_train.load(checkpoint, DART(keep=4), device="cpu").attached
    both = dart_train.load(checkpoint, [TowerDART(), DART(keep=4)], device="cpu").attached
    assert by_name is not None and by_name.tower == TowerDART(layer=1, keep=0.5)
    assert given is not None and given.tower is None
    assert both is not None and both.tower == TowerDART(tolerance=0.0)
    assert dart_train.load(checkpoint, None, device="cpu").attached is None


def test_resumed_run_draws_the_same_ratios_of_the_tower(tmp_path: Path) -> None:
    options = [*TOWER, "train.save_steps=3", "train.lr_scheduler=constant"]
    train(tmp_path, "full", *options, "train.max_steps=6")
    train(tmp_path, "two_parts", *options, "train.max_steps=3")
    train(tmp_path, "two_parts", *options, "train.max_steps=6")
    pairs = [
        [(line["loss"], line["keep_tower"]) for line in losses(tmp_path / name)][3:] for name in ("full", "two_parts")
    ]
    assert len(pairs[0]) == 3 and pairs[0] == pairs[1]


def test_ratio_of_the_tower_follows_the_schedule() -> None:
    assert {tower_keep_at_step(Fixed(), 0.5, step, 9, 0) for step in range(9)} == {0.5}
    assert {tower_keep_at_step(Elastic(), 0.5, step, 50, 0) for step in range(50)} == {1.0, 0.75, 0.5}
    moved = [tower_keep_at_step(Progressive(), 0.5, step, 11, 0) for step in range(11)]
    assert moved[0] == 1.0 and moved[-1] == 0.5 and moved == sorted(moved, reverse=True)


def test_comparison_takes_a_tower_with_any_method(tmp_path: Path) -> None:
    methods = "compare.methods=[dart, {method: dart, name: both, tower: {layer: 1, keep: 0.5}}, reduction]"
    recipe = load_recipe(make_recipe(tmp_path), [methods, "compare.budgets=[0.25]", TOWER[0]])
    towers = {cell.method: cell.tower for cell in grid_cells(recipe)}
    half = TowerDART(layer=1, keep=0.5)
    assert towers == {"full": None, "dart": None, "both": half, "reduction": half}


def test_wrong_tower_is_reported_with_all_other_errors(tmp_path: Path) -> None:
    wrong = ["reduction.tower={layer: 1, tolerance: 0.5, ratio: 1}", "compare.methods=[{method: dart, tower: 3}]"]
    with pytest.raises(RecipeError) as error:
        load_recipe(make_recipe(tmp_path), wrong)
    for each in ("unknown option 'ratio'", "tolerance with layer=1", "given 3, expected a mapping"):
        assert each in str(error.value)


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    short = ["train.per_device_batch_size=1", "train.max_steps=3", "parts.vision.mode=lora"]
    return stage_jobs(recipe, folder, "23", "reduction.tower={tolerance: 0.0}", *short)


@pytest.mark.deepspeed
def test_zero_2_and_3_train_alike_with_ranks_of_different_images(rank_runs: RankRuns) -> None:
    of_2, of_3 = map(rank_runs.losses, "23")
    assert len(of_2) == 3 and of_3 == pytest.approx(of_2, rel=2e-3)
