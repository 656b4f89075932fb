"""A short run on two ranks with ZeRO 2 and 3: quick enough to try on every release of DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train.checkpoints import is_complete
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = pytest.mark.deepspeed


def test_zero_2_and_3_train_alike_and_save(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    short = ["train.per_device_batch_size=1", "train.max_steps=2"]
    jobs = [
        {
            "recipe": str(recipe),
            "overrides": [f"train.output_dir={tmp_path / stage}", f"train.zero_stage={stage}", *short],
        }
        for stage in "23"
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(tmp_path / "jobs.json"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    of_stage_2, of_stage_3 = ([line["loss"] for line in losses(tmp_path / stage)] for stage in "23")
    assert len(of_stage_2) == 2 and of_stage_3 == pytest.approx(of_stage_2, rel=2e-3)
    assert all(is_complete(tmp_path / stage / "checkpoint-2") for stage in "23")
