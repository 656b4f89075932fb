"""The commands of `python -m launch.real_evidence` make what the recipes that they run read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from dart_train.config import load_recipe
from launch import demo, real_evidence
from launch.demo import Commands

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[True, False], ids=["bf16", "fp32"])
def commands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Every command, in an order in which it is run, on a CPU with and without bfloat16; none is run."""
    found: list[list[str]] = []

    def run(self: Commands, title: str, command: Sequence[str], accepted: Sequence[int] = (0,)) -> None:
        found.append(list(command))

    def run_together(self: Commands, title: str, chains: dict[str, Sequence[Sequence[str]]], logs: Path) -> None:
        found.extend(list(command) for chain in chains.values() for command in chain)

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr(Commands, "run_together", run_together)
    monkeypatch.setattr(demo, "bf16_is_emulated", lambda: not request.param)
    monkeypatch.setattr("sys.argv", ["real_evidence"])
    monkeypatch.chdir(tmp_path)  # without a base
    assert real_evidence.main() == 0
    return found


def trainings(commands: list[list[str]]) -> Iterator[tuple[Path, list[str]]]:
    return launched("launch/train.py", commands)


def launched(script: str, commands: list[list[str]]) -> Iterator[tuple[Path, list[str]]]:
    """The recipe and the overrides of each command that runs the script."""
    for command in commands:
        if script in command:
            place = command.index(script)
            yield ROOT / command[place + 1], command[place + 2 :]


def outputs(commands: list[list[str]]) -> set[str]:
    return {command[command.index("--out") + 1] for command in commands if "--out" in command} | {
        load_recipe(recipe, overrides).train.output_dir or f"runs/{recipe.stem}"
        for recipe, overrides in trainings(commands)
    }


def test_everything_that_is_compared_is_made(commands: list[list[str]]) -> None:
    made = outputs(commands)
    for name in (real_evidence.NAMES, real_evidence.TEXTS):
        compare = yaml.safe_load((ROOT / name).read_text())["compare"]
        assert set(compare["checkpoints"].values()) <= made
        assert {str(Path(each["path"]).parent) for each in compare["sets"]} <= made


def test_everything_that_is_trained_on_is_made(commands: list[list[str]]) -> None:
    made = outputs(commands)
    recipes = [load_recipe(recipe, overrides) for recipe, overrides in trainings(commands)]
    assert len(recipes) == 6  # adapted, control, adapted to a scorer, and three scorers
    for recipe in recipes:
        assert recipe.model.path in made
        assert recipe.scorer.path is None or recipe.scorer.path in made
        assert {str(Path(source.path).parent) for source in recipe.data.train} <= made


def test_bf16_only_on_cpus_that_have_it(commands: list[list[str]], request: pytest.FixtureRequest) -> None:
    bf16 = request.node.callspec.params["commands"]
    recipes = [load_recipe(*each) for each in trainings(commands)]
    assert {recipe.train.precision for recipe in recipes} == {"bf16" if bf16 else "fp32"}
    recipes += [load_recipe(*each) for each in launched("launch/compare.py", commands)]
    assert len(recipes) == 8
    assert {recipe.model.dtype for recipe in recipes} == {"bfloat16" if bf16 else "float32"}


def test_the_control_differs_in_the_reduction_alone(commands: list[list[str]]) -> None:
    (adapted, control) = (
        load_recipe(recipe, overrides).to_dict()
        for recipe, overrides in trainings(commands)
        if recipe.name == "real_dart.yaml"
    )
    different = {name for name in adapted if json.dumps(adapted[name]) != json.dumps(control[name])}
    assert different == {"reduction", "train", "compare"}  # the folders of the last two follow from the run's
    assert {key for key, value in adapted["train"].items() if control["train"][key] != value} == {"output_dir"}
