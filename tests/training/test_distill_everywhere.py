"""Teacher and student in one forward: in one process, under DDP and every ZeRO stage the losses of two forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from dart_train.config import load_recipe
from dart_train.training import trainer
from dart_train.training.deepspeed_config import deepspeed_config
from dart_train.training.objective import forward_teacher_separately
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
STAGES = ("ddp", "0", "2", "3")
TEACHING = ["distill.enabled=true", "train.max_steps=6"]
# One row a rank and forward: some steps have a picture on one rank alone, and some on none.
RANKS = ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=4", "train.gradient_checkpointing=true"]


def _zero(folder: Path, stage: str, recipe: Path) -> list[str]:
    """DeepSpeed's own configuration, told to say when the order of its gathers breaks."""
    settings = deepspeed_config(load_recipe(recipe, [f"train.zero_stage={stage}", *RANKS]).train)
    settings["zero_optimization"]["log_trace_cache_warnings"] = True
    file = folder / f"zero-{stage}.json"
    file.write_text(json.dumps(settings))
    return [f"train.deepspeed={file}"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with one run for each stage and the two of a lone process, and what the launch said."""
    folder = tmp_path_factory.mktemp("distilled")
    recipe, jobs = make_recipe(folder), []
    for stage in STAGES:
        zero = [] if stage == "ddp" else _zero(folder, stage, recipe)
        job: dict[str, Any] = {"recipe": str(recipe), "ddp": stage == "ddp"}
        jobs.append({**job, "overrides": [f"train.output_dir={folder / stage}", *TEACHING, *RANKS, *zero]})
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    train(recipe, [f"train.output_dir={folder / 'shared'}", *TEACHING])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "forward_with_teacher", forward_teacher_separately)
        train(recipe, [f"train.output_dir={folder / 'twice'}", *TEACHING])
    return folder, done.stdout + done.stderr


@pytest.mark.parametrize("run", ["shared", *STAGES])
def test_one_forward_trains_as_two_do(runs: tuple[Path, str], run: str) -> None:
    expected, found = losses(runs[0] / "twice"), losses(runs[0] / run)
    assert len(expected) == len(found) == 6
    for name in ("loss", "grad_norm", "answer_loss", "distill_loss"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=2e-3), name
    assert all((line["distill_loss"] > 1e-4) == (line["keep"] < 1) for line in found)


def test_the_order_of_gathers_never_breaks(runs: tuple[Path, str]) -> None:
    assert "Invalidate trace cache" not in runs[1]
