"""A resumed run is the run that was started: a changed recipe, base model or version is refused unless forced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dart_train import train
from dart_train.cli.training import train as main
from dart_train.training.run_record import fingerprint_model
from tests.fixtures.run_scene import losses, make_recipe

FIRST = ["train.max_steps=2", "train.save_steps=1", "train.per_device_batch_size=2"]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a run with two checkpoints."""
    recipe = make_recipe(tmp_path_factory.mktemp("scene"))
    train(recipe, FIRST)
    return recipe


@pytest.fixture
def recipe(begun: Path, tmp_path: Path) -> Path:
    """A run and its base model in a folder that the test may damage."""
    text = begun.read_text()
    for name in ("run", "llava"):
        shutil.copytree(begun.parent / name, tmp_path / name)
        text = text.replace(str(begun.parent / name), str(tmp_path / name))
    (tmp_path / begun.name).write_text(text)
    return tmp_path / begun.name


def refused(recipe: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    before = {file: file.stat().st_mtime_ns for file in recipe.parent.glob("run/**/*") if file.name != ".lock"}
    assert main([str(recipe), *FIRST, *changes]) == 2
    assert {file: file.stat().st_mtime_ns for file in before} == before
    return capsys.readouterr().err


def test_resume_with_a_changed_recipe_lists_every_difference(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = refused(recipe, capsys, "train.learning_rate=2e-3", "parts.lora.rank=8", "reduction.keep=0.5")
    for difference in ("train.learning_rate: 0.001 then, 0.002 now", "parts.lora.rank: 4 then, 8 now", "0.5 now",
                       "--force"):  # fmt: skip
        assert difference in output, difference


def test_resume_with_another_base_model_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe.parent / "llava" / "model.safetensors"
    weights = load_file(file)
    name = min(weights)
    weights[name] = torch.randn_like(weights[name].float()).to(weights[name].dtype)
    save_file(weights, file, {"format": "pt"})
    fingerprint_model.cache_clear()
    assert "another base model" in refused(recipe, capsys)


def test_resume_with_another_version_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe.parent / "run" / "checkpoint-2" / "versions.json"
    size = file.stat().st_size
    then = {**json.loads(file.read_text()), "peft": "0.1.0"}
    text = json.dumps(then, indent=2)
    file.write_text(text + " " * (size - len(text)))  # the mark knows sizes
    assert "peft: 0.1.0 then, " in refused(recipe, capsys)


def test_resume_with_force_continues_and_warns(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main([str(recipe), *FIRST, "train.max_steps=3", "train.weight_decay=0.1", "--force"]) == 0
    assert "train.weight_decay: 0.0 then, 0.1 now" in caplog.text
    assert [line["step"] for line in losses(recipe.parent / "run")] == [1, 2, 3]


def test_resume_with_allowed_changes(recipe: Path) -> None:
    """More steps, other intervals of saving and logging, a base model that was moved."""
    moved = recipe.parent / "moved"
    (recipe.parent / "llava").rename(moved)
    more = ["train.max_steps=3", "train.save_steps=3", "train.logging_steps=3", f"model.path={moved}", "log.name=b"]
    assert main([str(recipe), *FIRST, *more]) == 0
    assert (recipe.parent / "run" / "checkpoint-3").is_dir()


def test_resume_continues_the_grouping_that_the_recipe_leaves_to_the_default(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs were not grouped by length when that was the default; they go on as they began, new ones are grouped."""
    assert "data.group_by_length: False then, True now" in refused(recipe, capsys, "data.group_by_length=true")
    more, run, other = [*FIRST, "train.max_steps=4"], recipe.parent / "run", f"train.output_dir={tmp_path / 'other'}"
    shutil.copytree(run, tmp_path / "other")
    train(recipe, [*more, "data.group_by_length=null"])
    assert "\n  group_by_length: false\n" in (run / "recipe.yaml").read_text()
    train(recipe, [*more, "data.group_by_length=false", other])
    assert [line["loss"] for line in losses(run)] == [line["loss"] for line in losses(tmp_path / "other")]
    train(recipe, [*more, "data.group_by_length=null", f"train.output_dir={tmp_path / 'grouped'}"])
    assert "\n  group_by_length: true\n" in (tmp_path / "grouped" / "recipe.yaml").read_text()
