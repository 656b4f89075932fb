"""One process, DDP and every ZeRO stage train the same model: the same losses and gradient norms, step by step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = pytest.mark.deepspeed
STAGES = ("ddp", "0", "1", "2", "3")
MODES = {
    "lora": [],
    # Small steps: rounding grows from step to step, and with all weights moving it grows fast.
    "full": ["parts.language={mode: full}", "parts.vision={mode: full}", "train.learning_rate=1e-4"],
}
SHAPES = {
    "whole": ["train.per_device_batch_size=4"],
    "accumulated": [
        "train.per_device_batch_size=1",
        "train.gradient_accumulation_steps=4",
        "train.gradient_checkpointing=true",
    ],
}


def _jobs(recipe: Path, folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "recipe": str(recipe),
            "ddp": stage == "ddp",
            "overrides": [
                f"train.output_dir={folder / f'{mode}-{shape}-{stage}'}",
                f"train.zero_stage={0 if stage == 'ddp' else stage}",
                *changes,
                *batch,
            ],
        }
        for mode, changes in MODES.items()
        for shape, batch in SHAPES.items()
        for stage in STAGES
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one run for each mode, shape and stage, and the lone process's."""
    folder = tmp_path_factory.mktemp("same")
    recipe = make_recipe(folder)
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps(_jobs(recipe, folder)))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(jobs), timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    for mode, changes in MODES.items():
        train(recipe, [f"train.output_dir={folder / f'{mode}-alone'}", *changes])
    return folder


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_every_stage_trains_as_one_process_does(runs: Path, mode: str, shape: str, stage: str) -> None:
    alone, here = losses(runs / f"{mode}-alone"), losses(runs / f"{mode}-{shape}-{stage}")
    assert len(alone) == len(here) == 10
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in alone]
        assert [line[name] for line in here] == pytest.approx(expected, rel=2e-3), name
    for name in ("keep", "visual_before", "visual_after"):
        assert [line[name] for line in here] == [line[name] for line in alone]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_every_stage_keeps_the_same_tokens(runs: Path, mode: str, shape: str) -> None:
    for rank in (0, 1):
        kept = {(runs / f"{mode}-{shape}-{stage}" / f"kept-{rank}.json").read_text() for stage in STAGES}
        assert len(kept) == 1
        assert len(set(json.loads(kept.pop()))) > 5


def test_training_moves_the_loss(runs: Path) -> None:
    lines = losses(runs / "lora-alone")
    assert lines[-1]["loss"] < 0.95 * lines[0]["loss"]
