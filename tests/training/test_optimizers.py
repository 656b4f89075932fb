"""Optimizers, schedules, NEFTune, early stopping, and arguments of transformers by their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers.training_args import OptimizerNames

import dart_train
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.config.schema import Optimizer
from dart_train.training.callbacks import read_metrics
from dart_train.training.run import build, prepare
from tests.fixtures.run_scene import losses, make_recipe

SHORT = ["train.per_device_batch_size=2", "train.save_steps=2", "train.max_steps=4", "train.learning_rate=1e-2"]
ALONE = RankInfo(0, 1, 1, False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


def optimizer_of(recipe: Path, run: Path, *more: str) -> Any:
    read = load_recipe(recipe, [*SHORT, f"train.output_dir={run}", "train.zero_stage=0", *more])
    return build(prepare(read, ALONE)).create_optimizer()


def test_every_optimizer_is_one_of_transformers() -> None:
    assert set(get_args(Optimizer)) <= {each.value for each in OptimizerNames}


@pytest.mark.parametrize("name", ["adamw_torch", "adafactor", "sgd", "rmsprop", "adagrad"])
def test_optimizer_is_made_by_its_name(recipe: Path, tmp_path: Path, name: str) -> None:
    made = optimizer_of(recipe, tmp_path, f"train.optimizer={name}")
    assert type(made).__name__.lower() == name.removesuffix("_torch")
    assert {group["part"] for group in made.param_groups} == {"projector", "language"}


def test_betas_and_epsilon_reach_the_optimizer(recipe: Path, tmp_path: Path) -> None:
    made = optimizer_of(recipe, tmp_path, "train.adam_betas=[0.8, 0.95]", "train.hf={adam_epsilon: 1.0e-5}")
    assert {group["betas"] for group in made.param_groups} == {(0.8, 0.95)}
    assert {group["eps"] for group in made.param_groups} == {1e-5}


def test_another_optimizer_trains_otherwise(recipe: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("adamw_torch", "adamw_torch_fused", "sgd"):
        dart_train.train(recipe, [*SHORT, f"train.optimizer={name}", f"train.output_dir={tmp_path / name}"])
        found[name] = [line["loss"] for line in losses(tmp_path / name)]
    assert found["adamw_torch"] == pytest.approx(found["adamw_torch_fused"], rel=1e-4)
    assert found["sgd"][2:] != pytest.approx(found["adamw_torch"][2:], rel=1e-4)


def test_cosine_ends_at_the_minimum_for_every_part(recipe: Path, tmp_path: Path) -> None:
    more = ["train.min_learning_rate=1e-3", "parts.projector={mode: full, learning_rate: 1e-4}", "train.max_steps=5"]
    dart_train.train(recipe, [*SHORT, *more, f"train.output_dir={tmp_path}"])
    first, last = losses(tmp_path)[0], losses(tmp_path)[-1]
    assert (first["lr_language"], first["lr_projector"]) == pytest.approx((1e-2, 1e-4))
    assert last["lr_language"] / 1e-2 == pytest.approx(last["lr_projector"] / 1e-4)
    assert 0.1 < last["lr_language"] / 1e-2 < 0.25  # the minimum is reached after the last step


def test_noise_of_neftune_is_the_same_after_a_resume(recipe: Path, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    more = [*SHORT, "train.neftune_alpha=5.0", f"train.output_dir={run}"]
    dart_train.train(recipe, more)
    uninterrupted = [line["loss"] for line in losses(run)]
    shutil.rmtree(run / "checkpoint-4")
    dart_train.train(recipe, more)
    assert [line["loss"] for line in losses(run)] == uninterrupted
    dart_train.train(recipe, [*SHORT, f"train.output_dir={plain}"])
    assert [line["loss"] for line in losses(plain)] != pytest.approx(uninterrupted, rel=1e-4)


def test_run_stops_early_saves_and_continues_with_more_patience(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of nearly zero no validation is better than the first by the threshold."""
    more = [
        f"data.validation=[{{path: {recipe.parent / 'rows.json'}, images: {recipe.parent / 'images'}, limit: 4}}]",
        "train.per_device_batch_size=2", "train.max_steps=8", "train.save_steps=4", "train.eval_steps=1",
        "train.learning_rate=1e-9", "train.eval_budgets=[]", "train.early_stopping_threshold=0.5",
        f"train.output_dir={tmp_path}",
    ]  # fmt: skip
    stopped = dart_train.train(recipe, [*more, "train.early_stopping_patience=2"])
    assert (stopped.steps, stopped.stopped) == (3, None)
    assert stopped.checkpoint is not None and stopped.checkpoint.name == "checkpoint-3"
    assert "early stopping at step 3" in capsys.readouterr().err
    again = dart_train.train(recipe, [*more, "train.early_stopping_patience=2"])
    assert again.steps == 3 and len(losses(tmp_path)) == 3
    longer = dart_train.train(recipe, [*more, "train.early_stopping_patience=4"])
    assert longer.steps == 5
    assert [line["step"] for line in read_metrics(tmp_path) if "eval_loss" in line] == [1, 2, 3, 4, 5]
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["EarlyStopping"]["attributes"]["early_stopping_patience_counter"] == 4


def test_missing_package_is_named_with_its_key(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dart_train.training.optional_packages.find_spec", lambda name: None)
    read = load_recipe(recipe, ["train.optimizer=adamw_8bit", "train.liger=true", f"train.output_dir={tmp_path}"])
    with pytest.raises(
        ValueError, match=r"liger-kernel(.|\n)*train.optimizer: adamw_8bit needs the package bitsandbytes"
    ):
        prepare(read, ALONE)
