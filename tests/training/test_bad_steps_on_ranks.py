"""A NaN in one rank's batch: under DDP and every ZeRO stage all ranks pass over the same step, or stop at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.fixtures.run_scene import ROOT, launch, losses, make_recipe

pytestmark = pytest.mark.deepspeed
STAGES = {
    "ddp": ["train.zero_stage=0"],
    "0": ["train.zero_stage=0"],
    "1": ["train.zero_stage=1"],
    "2": ["train.zero_stage=2"],
    "2-bf16": ["train.zero_stage=2", "train.precision=bf16"],
    "3": ["train.zero_stage=3"],
}
STEPS = ["train.max_steps=3", "train.save_steps=1", "train.save_total_limit=null", "train.per_device_batch_size=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    recipe = make_recipe(folder)

    def job(name: str, poison: list[Any], *changes: str) -> dict[str, Any]:
        overrides = [f"train.output_dir={folder / name}", *STEPS, *changes]
        return {"recipe": str(recipe), "ddp": name == "ddp", "poison": poison, "overrides": overrides}

    jobs = [job(name, [1, 2, "nan"], "train.on_nan=skip", *changes) for name, changes in STAGES.items()]
    jobs += [job("gradient", [0, 2, "gradient"], "train.on_nan=skip"), job("stop", [1, 2, "inf"])]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = launch(ROOT / "tests/fixtures/job_runner.py", str(folder / "jobs.json"), timeout=3000)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("name", [*STAGES, "gradient"])
def test_no_rank_takes_the_step(folder: Path, name: str) -> None:
    assert [line["bad_steps"] for line in losses(folder / name)] == [0, 1, 1]
    one, two, three = (load_file(folder / name / f"checkpoint-{step}/adapter_model.safetensors") for step in (1, 2, 3))
    assert all(one[key].equal(two[key]) for key in one)
    assert not all(two[key].equal(three[key]) for key in two)


@pytest.mark.parametrize("name", STAGES)
def test_the_rows_of_the_rank_are_written_down(folder: Path, name: str) -> None:
    told = [json.loads(line) for line in (folder / name / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"], line["losses"]) for line in told] == [(2, 1, ["nan"])]
    assert len(told[0]["rows"]) == 2


def test_of_a_bad_gradient_all_rows_are_suspects(folder: Path) -> None:
    told = [json.loads(line) for line in (folder / "gradient" / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"]) for line in told] == [(2, 0), (2, 1)]


def test_every_stage_goes_on_alike(folder: Path) -> None:
    expected = [line["loss"] for line in losses(folder / "ddp")]
    rates = [line["lr_language"] for line in losses(folder / "ddp")]
    for name in ("0", "1", "2", "3"):
        lines = losses(folder / name)
        assert [line["loss"] for line in lines] == pytest.approx(expected, rel=2e-3), name
        assert [line["lr_language"] for line in lines] == pytest.approx(rates), name


def test_every_rank_stops_at_the_same_step(folder: Path) -> None:
    said = [(folder / "stop" / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and "loss is inf at step 2, rank 1" in said[0]
    assert not (folder / "stop" / "checkpoint-2").exists()
