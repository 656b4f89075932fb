"""A short run on two ranks with ZeRO 2 and 3: quick enough to try on every release of DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train.checkpoints import is_complete
from tests.fixtures.run_scene import launch_stages

pytestmark = pytest.mark.deepspeed


def test_zero_2_and_3_train_alike_and_save(tmp_path: Path) -> None:
    of_2, of_3 = launch_stages(tmp_path, "23", "train.per_device_batch_size=1", "train.max_steps=2")
    assert len(of_2) == 2 and of_3 == pytest.approx(of_2, rel=2e-3)
    assert all(is_complete(tmp_path / stage / "checkpoint-2") for stage in "23")
