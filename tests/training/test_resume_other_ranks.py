"""A run of two ranks resumed on another number of ranks, at another ZeRO stage, with another backend or in one process
continues as it would have; what is not converted is refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from dart_train.cli.training import train as main
from dart_train.common.distributed import RankInfo
from dart_train.config import load_recipe
from dart_train.training.resharding import why_not_converted
from dart_train.training.run import prepare
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import ROOT, free_port, launch, losses

pytestmark = pytest.mark.deepspeed
SHORT = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=2"]
KINDS = {"lora": [], "full": ["parts.language={mode: full}", "parts.vision={mode: full}"]}
FROZEN_TOWER = ["parts.language={mode: full}"]
WRITTEN = {
    "lora": "train.zero_stage=2",
    "full": "train.zero_stage=2",
    "3": "train.zero_stage=3",
    "0-bf16": "train.zero_stage=0",
    "fsdp2": "train.backend=fsdp2",
    "ddp": "train.backend=ddp",
    "ddp-full": "train.backend=ddp",
}
OPTIONS = KINDS | {
    "3": FROZEN_TOWER,
    "0-bf16": ["train.precision=bf16"],
    "fsdp2": [],
    "ddp": [],
    "ddp-full": FROZEN_TOWER,
}
# The second step of a run is continued by another run.
CHANGES = [
    ("lora", "train.zero_stage=3"),
    ("lora", "train.zero_stage=0"),
    ("lora", "train.backend=fsdp2"),
    ("3", "train.zero_stage=2"),
    ("3", "train.zero_stage=0"),
    ("0-bf16", "train.zero_stage=2"),
    ("fsdp2", "train.zero_stage=2"),
    ("ddp", "train.zero_stage=2"),
    ("ddp-full", "train.zero_stage=3"),
    ("ddp-full", "train.backend=fsdp2"),
]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    runs = {name: [how, f"train.output_dir={folder / name}", *OPTIONS[name]] for name, how in WRITTEN.items()}
    for name, how in CHANGES:
        goes_on = [f"train.resume={folder / name / 'checkpoint-2'}", f"train.output_dir={folder / f'{name} {how}'}"]
        runs[f"{name} {how}"] = [how, *goes_on, *OPTIONS[name]]
    return [{"recipe": str(recipe), "overrides": [*SHORT, *overrides]} for overrides in runs.values()]


def continues(found: Path, expected: Path, tolerance: float) -> bool:
    """Whether steps 3 and 4 are those of the other run."""
    for name in ("loss", "grad_norm", "lr_projector", "lr_language", "visual_after"):
        one, other = ([line[name] for line in losses(run) if line["step"] > 2] for run in (found, expected))
        assert len(one) == 2 and one == pytest.approx(other, rel=tolerance), name
    return True


def stamps(run: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize(("name", "how"), CHANGES)
def test_resume_at_another_stage_or_backend_continues_with_the_same_losses(
    rank_runs: RankRuns, name: str, how: str
) -> None:
    """In bf16, ZeRO adds gradients up in another order."""
    run = rank_runs.folder / f"{name} {how}"
    assert continues(run, rank_runs.folder / name, 1e-2 if "bf16" in name else 1e-4)
    stage = json.loads((run / "checkpoint-4/complete.json").read_text())["stage"]
    assert str(stage) == how.partition("=")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_continues_a_run_of_two_ranks(rank_runs: RankRuns, kind: str) -> None:
    whole, run = rank_runs.folder / kind, rank_runs.folder / f"{kind} alone"
    more = [f"train.resume={whole / 'checkpoint-2'}", f"train.output_dir={run}", "train.per_device_batch_size=4"]
    assert main([str(rank_runs.recipe), *SHORT, *KINDS[kind], *more]) == 0
    assert continues(run, whole, 1e-3)
    assert not (run / ".resharded").exists()


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resume_on_another_number_of_ranks_continues_with_the_same_losses(rank_runs: RankRuns, ranks: int) -> None:
    """Fewer ranks take more rows each, more ranks fewer; with another number of rows in a step it is refused."""
    whole, run = rank_runs.folder / "lora", rank_runs.folder / f"on {ranks}"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoint-4")
    shape = [f"train.per_device_batch_size={4 // ranks}", "train.gradient_accumulation_steps=1", "train.zero_stage=1"]
    command = [str(rank_runs.recipe), *SHORT, *shape, f"train.output_dir={run}"]
    if ranks == 1:  # in this process, with what a launcher gives to its only rank
        given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        with mock.patch.dict(os.environ, given, MASTER_PORT=str(free_port())):
            assert main(command) == 0
    else:
        done = launch(ROOT / "launch/train.py", *command, ranks=ranks)
        assert done.returncode == 0, done.stderr[-4000:]
    for name in ("loss", "grad_norm"):
        expected = [line[name] for line in losses(whole)]
        assert [line[name] for line in losses(run)] == pytest.approx(expected, rel=1e-3), name
    assert json.loads((run / "checkpoint-4/complete.json").read_text())["ranks"] == ranks
    assert not (run / ".resharded").exists()


def test_loss_scale_of_fp16_is_not_converted_to_other_backends() -> None:
    """fp16 does not run on CPUs."""
    two: dict[str, int | str | None] = {"ranks": 2, "stage": 2}
    for stage in (0, None, "fsdp2"):
        assert "scale of the loss" in (why_not_converted(two, {**two, "stage": stage}, "fp16") or "")
        assert why_not_converted(two, {**two, "stage": stage}, "bf16") is None
    assert why_not_converted(two, {"ranks": 4, "stage": 3}, "fp16") is None


def test_another_number_of_rows_in_a_step_is_refused(rank_runs: RankRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rank_runs.folder / "lora"
    before = stamps(run)
    monkeypatch.setenv("RANK", "0")  # as a launcher sets them
    monkeypatch.setenv("WORLD_SIZE", "4")
    recipe = load_recipe(rank_runs.recipe, [*SHORT, f"train.output_dir={run}"])
    with pytest.raises(ValueError, match=r"4 rows in a step \(2 ranks x 2 x 1\), now 8 \(4 ranks x 2 x 1\)"):
        prepare(recipe, RankInfo.read())
    assert stamps(run) == before
