"""torchrun starts the same training as the DeepSpeed launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dart_train import train
from tests.fixtures.run_scene import ROOT, free_port, losses, make_recipe, run

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
SHORT = ["train.max_steps=4"]
SHARED = [*SHORT, "train.per_device_batch_size=4"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished run of one process."""
    recipe = make_recipe(tmp_path_factory.mktemp("alone"))
    train(recipe, [*SHORT, f"train.output_dir={recipe.parent / 'alone'}"])
    return recipe


def same(recipe: Path, other: Path) -> None:
    expected, found = losses(recipe.parent / "alone"), losses(other)
    assert len(found) == len(expected) == 4
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in found] == pytest.approx([line[name] for line in expected], rel=2e-3), name


@pytest.mark.parametrize("stage", [0, 2])
def test_torchrun_trains_like_one_process(alone: Path, tmp_path: Path, stage: int) -> None:
    """Stage 0 is plain DDP there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    command += [str(free_port()), str(ROOT / "launch/train.py"), str(alone), *SHARED, f"train.zero_stage={stage}"]
    done = run([*command, f"train.output_dir={tmp_path / 'run'}"], timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    same(alone, tmp_path / "run")
