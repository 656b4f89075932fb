"""A checkpoint is complete, or it is recognised as incomplete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart_train import DART, KeepAll
from dart_train.checkpoints import (
    COMPLETE_MARKER,
    atomic,
    commit_checkpoint,
    is_complete,
    latest_complete,
    prune,
    read_reducers,
    why_incomplete,
    write_reducers,
)
from dart_train.checkpoints.atomic import draft_folder


def make(run: Path, step: int) -> Path:
    folder = draft_folder(run, step)
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "inner" / "state.pt").write_bytes(b"s" * 10)
    target = run / f"checkpoint-{step}"
    commit_checkpoint(folder, target, {"step": step})
    return target


def test_committed_checkpoint_is_complete_and_lists_its_files(tmp_path: Path) -> None:
    target = make(tmp_path, 5)
    assert is_complete(target) and why_incomplete(target) is None
    assert json.loads((target / COMPLETE_MARKER).read_text())["files"] == {
        "model.safetensors": 100,
        "inner/state.pt": 10,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_everything_is_flushed_before_the_checkpoint_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, flushed = tmp_path / "checkpoint-5", list[tuple[str, bool]]()
    monkeypatch.setattr(atomic, "fsync_path", lambda path: flushed.append((path.name, target.exists())))
    make(tmp_path, 5)
    before = [name for name, renamed in flushed if not renamed]
    assert before[:3] == ["state.pt", "model.safetensors", COMPLETE_MARKER]  # the marker after what it lists
    assert set(before[3:]) == {"inner", draft_folder(tmp_path, 5).name}
    assert [name for name, renamed in flushed if renamed] == [tmp_path.name]


@pytest.mark.parametrize("harm", ["mark", "cut", "gone", "inner", "garbled", "list"])
def test_latest_complete_skips_a_damaged_checkpoint_and_reports_it(tmp_path: Path, harm: str) -> None:
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    if harm == "mark":
        (bad / COMPLETE_MARKER).unlink()
    elif harm == "cut":
        (bad / "model.safetensors").write_bytes(b"w" * 99)
    elif harm == "gone":
        (bad / "model.safetensors").unlink()
    elif harm == "inner":
        (bad / "inner" / "state.pt").unlink()
    else:
        (bad / COMPLETE_MARKER).write_text("{" if harm == "garbled" else "[]")
    found, skipped = latest_complete(tmp_path)
    assert found == good
    assert [each.folder for each in skipped] == [bad] and str(skipped[0]).startswith(
        "skipping incomplete checkpoint-10: "
    )


def test_latest_complete_orders_by_step_not_by_name(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        make(tmp_path, step)
    assert latest_complete(tmp_path)[0] == tmp_path / "checkpoint-100"


def test_draft_is_not_a_checkpoint(tmp_path: Path) -> None:
    draft_folder(tmp_path, 3).mkdir()
    (draft_folder(tmp_path, 3) / "model.safetensors").write_bytes(b"w")
    assert latest_complete(tmp_path) == (None, [])
    assert latest_complete(tmp_path / "no such run") == (None, [])


def test_commit_replaces_a_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    make(tmp_path, 5)
    assert is_complete(make(tmp_path, 5))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_prune_keeps_the_newest_the_best_and_incomplete_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    (tmp_path / "checkpoint-5").mkdir()  # damaged, or not ours: the user decides
    draft_folder(tmp_path, 6).mkdir()
    prune(tmp_path, keep=2, best=tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{n}" for n in (1, 3, 4, 5)]


def test_prune_after_a_kill_removes_discarded_and_restores_replaced(tmp_path: Path) -> None:
    make(tmp_path, 3).rename(tmp_path / ".checkpoint-3.discarded")
    make(tmp_path, 4).rename(tmp_path / ".checkpoint-4.replaced")
    make(tmp_path, 5)
    (tmp_path / ".checkpoint-5.replaced").mkdir()
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    assert is_complete(tmp_path / "checkpoint-4")


def test_reducer_json_round_trip(tmp_path: Path) -> None:
    assert read_reducers(tmp_path) is None
    stages = [DART(keep=64, per="image"), KeepAll(layer=5)]
    write_reducers(tmp_path, stages)
    assert read_reducers(tmp_path) == stages
    write_reducers(tmp_path, [])
    assert read_reducers(tmp_path) == []


def test_reducer_json_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reducer.json").write_text('{"format": 99, "stages": []}')
    with pytest.raises(ValueError, match="format 99, expected 1"):
        read_reducers(tmp_path)
