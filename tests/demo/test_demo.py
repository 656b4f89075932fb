"""The demo's commands without running them: recipes, overrides and the order of launches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dart_train.config import load_recipe
from dart_train.evaluation.comparison_grid import grid_cells
from launch import demo
from launch.claim import PARTS, SECOND_SET, SECOND_TURN, SET, SHOWN
from tests.demo.test_claim import answers
from tests.fixtures.run_scene import ROOT

SEEDS = 2


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """All commands of a demo of two seeds, whose comparisons have answers."""
    ran: list[list[str]] = []

    def run_together(self: object, title: str, chains: dict[str, list[list[str]]], logs: Path) -> None:
        ran.extend(list(command) for chain in chains.values() for command in chain)

    monkeypatch.setattr(demo.Commands, "run", lambda self, title, command, accepted=(0,): ran.append(list(command)))
    monkeypatch.setattr(demo.Commands, "run_together", run_together)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path), "--seeds", str(SEEDS)])
    monkeypatch.chdir(ROOT)
    for seed in range(SEEDS):
        answers(tmp_path / f"seed-{seed}/compare")
    assert demo.main() == 0
    return ran


def recipes(commands: Sequence[Sequence[str]], script: str) -> list[tuple[str, list[str]]]:
    """(recipe, overrides) of every launch of a script."""
    found = [(command, list(command).index(script)) for command in commands if script in command]
    return [(command[at + 1], list(command[at + 2 :])) for command, at in found]


def test_demo_draws_trains_compares_calibrates_and_exports(commands: list[list[str]]) -> None:
    kinds = ["data/shapes.py", "launch/train.py", "launch/compare.py", "calibrate", "export"]
    order = [next(kind for kind in kinds if kind in command) for command in commands]
    once = ["launch/train.py"] * 3 + ["launch/compare.py"]
    assert order == ["data/shapes.py", "data/shapes.py", *once * SEEDS, "calibrate", "export"]


def test_scorer_comes_first_and_the_model_adapts_to_it(commands: list[list[str]]) -> None:
    scorer, adapted, _ = (load_recipe(*each) for each in recipes(commands, "launch/train.py")[:3])
    assert scorer.trains_scorer_alone and not adapted.trains_scorer
    assert adapted.scorer.path == scorer.train.output_dir
    assert adapted.reduction.reducers() == scorer.reduction.reducers()


def test_adapted_and_control_differ_in_the_reduction_alone(commands: list[list[str]]) -> None:
    _, adapted, control = (load_recipe(*each) for each in recipes(commands, "launch/train.py")[:3])
    assert not control.reduction.stages and adapted.reduction.reducers()[0].name == "learned"
    for name in ("model", "parts", "data"):
        assert getattr(control, name) == getattr(adapted, name)
    one, two = vars(control.train), vars(adapted.train)
    assert {key for key in one if one[key] != two[key]} == {"output_dir"}


def test_comparison_has_all_cells_of_the_claim(commands: list[list[str]]) -> None:
    for recipe in (load_recipe(*each) for each in recipes(commands, "launch/compare.py")):
        cells = {cell.key for cell in grid_cells(recipe)}
        wanted = {*SHOWN, *(cell for part in PARTS for cell in (part.cell, part.against))}
        assert wanted | {(*pair, "0.111") for pair in SECOND_TURN} <= cells
        assert [config.name for config in recipe.compare.sets] == [SET, SECOND_SET]
        trained = load_recipe(*recipes(commands, "launch/train.py")[1]).reduction.reducers()[0]
        learned = {cell.reducer for cell in grid_cells(recipe) if cell.method == "learned"}
        assert {replace(reducer, keep=trained.keep) for reducer in learned if reducer is not None} == {trained}


def test_chains_run_side_by_side_and_a_failure_ends_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commands, say = demo.Commands(), [sys.executable, "-c", "print('hello')"]
    commands.run_together("Train", {"one": [say, say], "two": [say]}, tmp_path)
    assert (tmp_path / "one.log").read_text() == "hello\nhello\n" and list(commands.seconds) == ["Train"]
    fail = [sys.executable, "-c", "import sys; print('the reason'); sys.exit(3)"]
    with pytest.raises(SystemExit) as stopped:
        commands.run_together("Train", {"one": [fail, say], "two": [say]}, tmp_path)
    assert stopped.value.code == 3 and (tmp_path / "one.log").read_text() == "the reason\n"
    assert "the reason" in capfd.readouterr().err


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_only_on_cpus_that_have_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: fast)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast, raising=False)
    assert load_recipe(demo.TRAIN, demo.precision()).train.precision == ("bf16" if fast else "fp32")
