"""A checkpoint that cannot be written, on all ranks or on one: every rank learns of it, the earlier one is complete."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from dart_train.checkpoints import latest_complete
from tests.fixtures.faults import digests
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import losses

pytestmark = pytest.mark.deepspeed
STEPS = ["train.max_steps=6", "train.save_steps=2", "train.save_total_limit=null", "train.per_device_batch_size=1"]
# name: which rank cannot write, how, the ZeRO stage, and train.on_save_error
CASES = {
    "a full disk": (0, "full", 2, "stop"),
    "a full disk, continue": (0, "full", 3, "continue"),
    "a quota of rank 0": (0, "small files", 3, "stop"),
    "a quota of rank 1": (1, "small files", 2, "stop"),
    "a quota of rank 1, continue": (1, "small files", 2, "continue"),
    "a closed folder": (0, "closed", 2, "stop"),
    "a read-only disk": (0, "read-only", 3, "stop"),
    "a read-only disk, continue": (0, "read-only", 2, "continue"),
}
MESSAGES = {
    "full": r"\(0\.[01] MiB free on that disk\)",
    "small files": "File too large|MiB free on that disk",  # torch keeps the reason to itself
    "closed": "Operation not permitted",
    "read-only": "Read-only file system",
}
CONTINUES = [name for name, case in CASES.items() if case[3] == "continue"]
STOPS = [name for name in CASES if name not in CONTINUES]


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    """On a file system of its own; none where that cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        return []
    return [
        {
            "recipe": str(recipe),
            "starve": [rank, 3, how, str(folder / f"{name}.json")],
            "overrides": [
                *STEPS,
                f"train.output_dir={disk / name}",
                f"train.zero_stage={stage}",
                f"train.on_save_error={on_error}",
            ],
        }
        for name, (rank, how, stage, on_error) in CASES.items()
        if how != "closed" or closable(disk)
    ]


@pytest.fixture
def disk(rank_runs: RankRuns) -> Path:
    place = rank_runs.folder / "disk"
    if not place.is_mount():
        pytest.skip("file systems can only be mounted by root")
    return place


def closable(place: Path) -> bool:
    """Older kernels have no such mark on a file system in memory."""
    closed = not subprocess.run(["chattr", "+i", str(place)], capture_output=True).returncode
    return closed and not subprocess.run(["chattr", "-i", str(place)]).returncode


@pytest.fixture(autouse=True)
def only_what_was_run(disk: Path, name: str) -> None:
    if not (disk / name).exists():
        pytest.skip("folders cannot be closed to root here")


@pytest.mark.parametrize("name", CASES)
def test_earlier_checkpoint_is_unchanged(disk: Path, name: str) -> None:
    before = json.loads((disk.parent / f"{name}.json").read_text())
    assert any(file.endswith("complete.json") for file in before)
    assert any("optim_states" in file for file in before)
    assert digests(disk / name) == before
    assert latest_complete(disk / name) == (disk / name / "checkpoint-2", [])


@pytest.mark.parametrize("name", STOPS)
def test_every_rank_stops_with_the_same_message(disk: Path, name: str) -> None:
    messages = [(disk / name / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    rank, how, *_ = CASES[name]
    assert messages[0] == messages[1] and re.search(MESSAGES[how], messages[0])
    assert (
        "the checkpoint of step 4 could not be written: rank " in messages[0]
        and "earlier checkpoints are unchanged" in messages[0]
    )
    assert how != "small files" or f"rank {rank}: " in messages[0]
    assert losses(disk / name)[-1]["step"] <= 4


@pytest.mark.parametrize("name", CONTINUES)
def test_every_rank_continues_to_the_end(disk: Path, name: str) -> None:
    assert not list((disk / name).glob("refused-*.txt"))
    assert {len(json.loads((disk / name / f"kept-{rank}.json").read_text())) for rank in (0, 1)} == {6}
    assert CASES[name][1] == "read-only" or losses(disk / name)[-1]["step"] == 6


@pytest.mark.parametrize("name", CASES)
def test_no_draft_checkpoint_is_left(disk: Path, name: str) -> None:
    assert not list((disk / name).glob(".checkpoint-*"))
