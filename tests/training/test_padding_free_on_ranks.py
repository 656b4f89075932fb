"""Forwards filled by tokens on two ranks: the same steps as one rank makes in two forwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_train import train
from tests.fixtures.run_scene import launch_stages, losses

pytestmark = pytest.mark.deepspeed
FILLED = ["train.padding_free=true", "train.tokens_per_batch=250", "train.per_device_batch_size=1"]
SHORT = ["train.max_steps=3", "train.learning_rate=1e-4"]


def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    of_2, of_3 = launch_stages(tmp_path, "23", *FILLED, *SHORT)
    alone = [f"train.output_dir={tmp_path / 'alone'}", "train.gradient_accumulation_steps=2"]
    train(tmp_path / "llava.yaml", [*FILLED, *SHORT, *alone])
    expected = [line["loss"] for line in losses(tmp_path / "alone")]
    assert len(expected) == 3
    assert of_2 == pytest.approx(expected, rel=1e-4) and of_3 == pytest.approx(expected, rel=1e-4)
