"""A short run on two ranks with ZeRO 2 and 3: quick enough to try on every release of DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.checkpoints import is_complete
from tests.fixtures.rank_jobs import Job, RankRuns, stage_jobs

pytestmark = pytest.mark.deepspeed


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    return stage_jobs(recipe, folder, "23", "train.per_device_batch_size=1", "train.max_steps=2")


def test_zero_2_and_3_train_alike_and_save(rank_runs: RankRuns) -> None:
    of_2, of_3 = map(rank_runs.losses, "23")
    assert len(of_2) == 2 and of_3 == pytest.approx(of_2, rel=2e-3)
    assert all(is_complete(rank_runs.folder / stage / "checkpoint-2") for stage in "23")
