"""NaN or Inf on one rank: under DDP and every ZeRO stage all ranks skip the same step, or stop at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

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


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    def job(name: str, poison: list[Any], *changes: str) -> Job:
        overrides = [f"train.output_dir={folder / name}", *STEPS, *changes]
        return {"recipe": str(recipe), "ddp": name == "ddp", "poison": poison, "overrides": overrides}

    jobs = [job(name, [1, 2, "nan"], "train.on_nan=skip", *changes) for name, changes in STAGES.items()]
    return [*jobs, job("gradient", [0, 2, "gradient"], "train.on_nan=skip"), job("stop", [1, 2, "inf"])]


@pytest.fixture
def folder(rank_runs: RankRuns) -> Path:
    return rank_runs.folder


@pytest.mark.parametrize("name", [*STAGES, "gradient"])
def test_nan_step_is_taken_by_no_rank(folder: Path, name: str) -> None:
    assert [line["bad_steps"] for line in losses(folder / name)] == [0, 1, 1]
    one, two, three = (load_file(folder / name / f"checkpoint-{step}/adapter_model.safetensors") for step in (1, 2, 3))
    assert all(one[key].equal(two[key]) for key in one)
    assert not all(two[key].equal(three[key]) for key in two)


@pytest.mark.parametrize("name", STAGES)
def test_nan_rows_of_the_rank_are_recorded(folder: Path, name: str) -> None:
    lines = [json.loads(line) for line in (folder / name / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"], line["losses"]) for line in lines] == [(2, 1, ["nan"])]
    assert len(lines[0]["rows"]) == 2


def test_inf_gradient_records_the_rows_of_all_ranks(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "gradient" / "bad_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["rank"]) for line in lines] == [(2, 0), (2, 1)]


def test_every_zero_stage_continues_alike_after_nan(folder: Path) -> None:
    expected = [line["loss"] for line in losses(folder / "ddp")]
    rates = [line["lr_language"] for line in losses(folder / "ddp")]
    for name in ("0", "1", "2", "3"):
        lines = losses(folder / name)
        assert [line["loss"] for line in lines] == pytest.approx(expected, rel=2e-3), name
        assert [line["lr_language"] for line in lines] == pytest.approx(rates), name


def test_every_rank_stops_at_the_same_inf_step(folder: Path) -> None:
    messages = [(folder / "stop" / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1] and "loss is inf at step 2, rank 1" in messages[0]
    assert not (folder / "stop" / "checkpoint-2").exists()
