"""The demo's commands without running them: recipes, overrides and the order of launches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dart_train.config import load_recipe
from launch import demo
from tests.demo.test_claim import answers
from tests.fixtures.run_scene import ROOT

SEEDS = 2


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """All commands of a demo of two seeds, whose comparisons have answers."""
    ran: list[list[str]] = []
    monkeypatch.setattr(demo.Commands, "run", lambda self, title, command: ran.append(list(command)))
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path), "--seeds", str(SEEDS)])
    monkeypatch.chdir(ROOT)
    for seed in range(SEEDS):
        answers(tmp_path / f"seed-{seed}/compare", control=300, adapted=400, control_full=470, adapted_full=465)
    assert demo.main() == 0
    return ran


def recipes(commands: Sequence[Sequence[str]], script: str) -> list[tuple[str, list[str]]]:
    """(recipe, overrides) of every launch of a script."""
    found = [(command, list(command).index(script)) for command in commands if script in command]
    return [(command[at + 1], list(command[at + 2 :])) for command, at in found]


def test_demo_draws_trains_compares_and_exports(commands: list[list[str]]) -> None:
    kinds = ["data/shapes.py", "launch/train.py", "launch/compare.py", "export"]
    order = [next(kind for kind in kinds if kind in command) for command in commands]
    once = ["launch/train.py", "launch/train.py", "launch/compare.py"]
    assert order == ["data/shapes.py", "data/shapes.py", *once * SEEDS, "export"]


def test_adapted_and_control_differ_in_the_reduction_alone(commands: list[list[str]]) -> None:
    control, adapted = (load_recipe(*each) for each in recipes(commands, "launch/train.py")[:2])
    assert not control.reduction.stages and adapted.reduction.reducers()[0].name == "dart"
    for name in ("model", "parts", "data"):
        assert getattr(control, name) == getattr(adapted, name)
    one, two = vars(control.train), vars(adapted.train)
    assert {key for key in one if one[key] != two[key]} == {"output_dir"}


def test_comparison_has_all_cells_of_the_claim(commands: list[list[str]]) -> None:
    for recipe in (load_recipe(*each) for each in recipes(commands, "launch/compare.py")):
        assert list(recipe.compare.checkpoints) == ["base", "control", "adapted"]
        assert recipe.compare.budgets == (0.5, 0.222, 0.111)
        assert list(recipe.compare.methods) == demo.METHODS


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_only_on_cpus_that_have_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: fast)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast, raising=False)
    assert load_recipe(demo.TRAIN, demo.precision()).train.precision == ("bf16" if fast else "fp32")
