"""Forwards filled by tokens on two ranks: the same steps as one rank makes in two forwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train import train
from tests.fixtures.rank_jobs import Job, RankRuns, stage_jobs
from tests.fixtures.run_scene import losses

pytestmark = pytest.mark.deepspeed
FILLED = ["train.padding_free=true", "train.tokens_per_batch=250", "train.per_device_batch_size=1"]
SHORT = ["train.max_steps=3", "train.learning_rate=1e-4"]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    return stage_jobs(recipe, folder, "23", *FILLED, *SHORT)


def test_two_ranks_train_what_one_does(rank_runs: RankRuns) -> None:
    alone = [f"train.output_dir={rank_runs.folder / 'alone'}", "train.gradient_accumulation_steps=2"]
    train(rank_runs.recipe, [*FILLED, *SHORT, *alone])
    expected = [line["loss"] for line in losses(rank_runs.folder / "alone")]
    assert len(expected) == 3
    for stage in "23":
        assert rank_runs.losses(stage) == pytest.approx(expected, rel=1e-4)
