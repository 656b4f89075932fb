"""Distillation with teacher and student in one forward: in one process, under DDP and every ZeRO stage, the losses are
those of two forwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import train
from dart_train.config import load_recipe
from dart_train.training import trainer
from dart_train.training.deepspeed_config import deepspeed_config
from dart_train.training.objective import forward_teacher_separately
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
STAGES = ("ddp", "0", "2", "3")
TEACHING = ["distill.enabled=true", "train.max_steps=6"]
# One row a rank and forward: some steps have an image on one rank only, and some on none.
RANKS = ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=4", "train.gradient_checkpointing=true"]


def _zero(folder: Path, stage: str, recipe: Path) -> list[str]:
    """DeepSpeed's configuration, with a warning when the order of its gathers changes."""
    settings = deepspeed_config(load_recipe(recipe, [f"train.zero_stage={stage}", *RANKS]).train)
    settings["zero_optimization"]["log_trace_cache_warnings"] = True
    file = folder / f"zero-{stage}.json"
    file.write_text(json.dumps(settings))
    return [f"train.deepspeed={file}"]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    jobs: list[Job] = []
    for stage in STAGES:
        zero = [] if stage == "ddp" else _zero(folder, stage, recipe)
        overrides = [f"train.output_dir={folder / stage}", *TEACHING, *RANKS, *zero]
        jobs.append({"recipe": str(recipe), "ddp": stage == "ddp", "overrides": overrides})
    return jobs


@pytest.fixture(scope="module")
def folder(rank_runs: RankRuns) -> Path:
    """One run for each stage, and two of a single process: with one forward and with two."""
    recipe, folder = rank_runs.recipe, rank_runs.folder
    train(recipe, [f"train.output_dir={folder / 'shared'}", *TEACHING])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "forward_with_teacher", forward_teacher_separately)
        train(recipe, [f"train.output_dir={folder / 'twice'}", *TEACHING])
    return folder


@pytest.mark.parametrize("run", ["shared", *STAGES])
def test_one_forward_trains_like_two(folder: Path, run: str) -> None:
    expected, found = losses(folder / "twice"), losses(folder / run)
    assert len(expected) == len(found) == 6
    for name in ("loss", "grad_norm", "answer_loss", "distill_loss"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=2e-3), name
    assert all((line["distill_loss"] > 1e-4) == (line["keep"] < 1) for line in found)


def test_zero_3_gathers_in_the_same_order_every_step(rank_runs: RankRuns) -> None:
    assert "Invalidate trace cache" not in rank_runs.output
