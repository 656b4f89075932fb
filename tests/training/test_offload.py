"""Offloading optimizer state and weights to the host: the same training.

DeepSpeed compiles its Adam for the host when it is first wanted, which takes minutes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import train
from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = [pytest.mark.deepspeed, pytest.mark.slow]
PLACES = {
    "optimizer-2": ["train.zero_stage=2", "train.offload_optimizer=true"],
    "optimizer-3": ["train.zero_stage=3", "train.offload_optimizer=true"],
    "both-3": ["train.zero_stage=3", "train.offload_optimizer=true", "train.offload_parameters=true"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a run for each place, and the lone process's."""
    folder = tmp_path_factory.mktemp("offload")
    recipe = make_recipe(folder)
    half = "train.per_device_batch_size=4"
    jobs = [
        {"recipe": str(recipe), "overrides": [f"train.output_dir={folder / name}", half, *changes]}
        for name, changes in PLACES.items()
    ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    train(recipe, [f"train.output_dir={folder / 'alone'}"])
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_offload_trains_like_one_process(runs: Path, place: str) -> None:
    alone, here = losses(runs / "alone"), losses(runs / place)
    assert len(alone) == len(here) == 10
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in here] == pytest.approx([line[name] for line in alone], rel=2e-3), name


@pytest.mark.parametrize("place", PLACES)
def test_offload_keeps_the_same_tokens(runs: Path, place: str) -> None:
    kept = {(runs / each / "kept-0.json").read_text() for each in PLACES}
    assert len(kept) == 1
    assert [line["visual_after"] for line in losses(runs / place)] == [
        line["visual_after"] for line in losses(runs / "alone")
    ]
