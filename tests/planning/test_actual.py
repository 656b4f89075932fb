"""After a run the prediction stands next to what happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train.__main__ import main
from dart_train.training import train
from tests.fixtures.run_scene import make_recipe


def test_a_real_runs_figures_stand_beside_the_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    overrides = ["train.max_steps=4", f"train.output_dir={run}", "train.per_device_batch_size=2"]
    overrides += ["reduction={method: dart, keep: 0.25, layer: 2, schedule: {kind: fixed}}"]
    train(recipe, overrides)
    capsys.readouterr()
    assert main(["plan", str(recipe), *overrides, "--seconds", "0.05", "--beside", str(run)]) == 0
    found = json.loads((run / "plan_vs_actual.json").read_text())
    assert found["step_seconds"]["actual"] > 0 and found["step_seconds"]["predicted"] > 0
    share = found["share_of_visual_tokens_kept"]
    assert share["actual"] == pytest.approx(share["predicted"], rel=0.02)
    assert "actual / predicted" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path)
    assert main(["plan", str(recipe), "--no-timing", "--beside", str(tmp_path)]) == 2
    assert "holds no metrics.jsonl" in capsys.readouterr().err
