"""Every shipped recipe of DPO and GRPO, run for two steps on a tiny stand-in of its architecture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dart_train
from dart_train.config import load_recipe
from dart_train.training.callbacks import read_metrics
from tests.fixtures.run_scene import ROOT
from tests.training.preference_scene import PREFERENCE, make_pairs
from tests.zoo import save_folder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("name", PREFERENCE)
def test_shipped_recipe_trains(tmp_path: Path, name: str) -> None:
    """Its model, rows, rewards and length of the run exchanged; everything else as it is shipped."""
    save_folder(PREFERENCE[name], tmp_path / "model")
    rows = json.dumps([{"path": str(make_pairs(tmp_path)), "images": str(tmp_path / "images")}])
    changes = [f"model.path={tmp_path / 'model'}", f"data.train={rows}", "data.workers=0", "train.max_steps=2"]
    changes += [f"train.output_dir={tmp_path / 'run'}", "train.logging_steps=1", "train.gradient_accumulation_steps=1"]
    if name.endswith("grpo"):
        changes += ["preference.num_generations=2", "train.per_device_batch_size=4"]
        changes += ["preference.max_completion_length=4"]
        changes += ["preference.rewards=tests.training.preference_scene:reward_by_position"]
    dart_train.train(ROOT / "recipes" / f"{name}.yaml", changes)
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(lines) == 2 and all(line["grad_norm"] > 0 for line in lines)
    assert lines[-1]["rows_with_another_choice"] == 0 and lines[-1]["rows_sharing_choice"] > 0


@pytest.mark.parametrize("name", PREFERENCE)
def test_shipped_recipe_is_valid(name: str) -> None:
    assert load_recipe(ROOT / "recipes" / f"{name}.yaml", needs=("data.train",)).train.method == name.split("_")[-1]
