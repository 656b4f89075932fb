"""A checkpoint is whole, or it is not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import DART, KeepAll
from dart_train.checkpoints import (
    MARK,
    is_complete,
    latest_complete,
    problems,
    read_reducers,
    seal,
    sweep,
    write_reducers,
)
from dart_train.checkpoints.atomic import unfinished


def make(run: Path, step: int) -> Path:
    folder = unfinished(run, step)
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "inner" / "state.pt").write_bytes(b"s" * 10)
    target = run / f"checkpoint-{step}"
    seal(folder, target, {"step": step})
    return target


def test_a_sealed_folder_is_whole_and_tells_its_files(tmp_path: Path) -> None:
    target = make(tmp_path, 5)
    assert is_complete(target) and problems(target) is None
    assert json.loads((target / MARK).read_text())["files"] == {"model.safetensors": 100, "inner/state.pt": 10}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize("harm", ["mark", "cut", "gone", "inner", "garbled", "list"])
def test_a_damaged_one_is_passed_over_and_told(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    if harm == "mark":
        (bad / MARK).unlink()
    elif harm == "cut":
        (bad / "model.safetensors").write_bytes(b"w" * 99)
    elif harm == "gone":
        (bad / "model.safetensors").unlink()
    elif harm == "inner":
        (bad / "inner" / "state.pt").unlink()
    else:
        (bad / MARK).write_text("{" if harm == "garbled" else "[]")
    found, passed = latest_complete(tmp_path)
    assert found == good
    assert [damaged.folder for damaged in passed] == [bad] and "passed over" in str(passed[0])


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        make(tmp_path, step)
    assert latest_complete(tmp_path)[0] == tmp_path / "checkpoint-100"


def test_what_is_being_written_is_no_checkpoint(tmp_path: Path) -> None:
    unfinished(tmp_path, 3).mkdir()
    (unfinished(tmp_path, 3) / "model.safetensors").write_bytes(b"w")
    assert latest_complete(tmp_path) == (None, [])
    assert latest_complete(tmp_path / "no such run") == (None, [])


def test_a_checkpoint_replaces_one_of_its_own_step(tmp_path: Path) -> None:
    make(tmp_path, 5)
    assert is_complete(make(tmp_path, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_sweeping_keeps_the_newest_the_best_and_what_is_not_its_own(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    (tmp_path / "checkpoint-5").mkdir()  # of somebody else, or damaged: left for a person to look at
    unfinished(tmp_path, 6).mkdir()
    sweep(tmp_path, keep=2, best=tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (1, 3, 4, 5)]


def test_what_a_kill_left_of_a_removal_goes_and_of_a_replacement_comes_back(tmp_path: Path) -> None:
    make(tmp_path, 3).rename(tmp_path / ".checkpoint-3.discarded")
    make(tmp_path, 4).rename(tmp_path / ".checkpoint-4.replaced")
    make(tmp_path, 5)
    (tmp_path / ".checkpoint-5.replaced").mkdir()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert is_complete(tmp_path / "checkpoint-4")


def test_reducers_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_reducers(tmp_path) is None
    stages = [DART(keep=64, per="image"), KeepAll(layer=5)]
    write_reducers(tmp_path, stages)
    assert read_reducers(tmp_path) == stages
    write_reducers(tmp_path, [])
    assert read_reducers(tmp_path) == []


def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reducer.json").write_text('{"format": 99, "stages": []}')
    with pytest.raises(ValueError, match="format 99, expected 1"):
        read_reducers(tmp_path)
