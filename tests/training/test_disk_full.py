"""Full disk, folder that cannot be written: a clear message, and the last complete checkpoint is unchanged."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_train import train
from dart_train.checkpoints import is_complete, latest_complete
from dart_train.checkpoints.atomic import draft_folder
from dart_train.cli.options import NOT_SAVED
from dart_train.cli.training import train as main
from dart_train.common.io import append_jsonl
from dart_train.training.checkpointing import CheckpointWriter
from tests.fixtures.faults import fill
from tests.fixtures.run_scene import losses, make_recipe

STEPS = ["train.max_steps=4", "train.save_steps=2", "train.per_device_batch_size=2", "train.save_total_limit=null"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_recipe(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint of the tiny model, but not for two."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("file systems can only be mounted by root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_disk_full_ends_the_run_and_keeps_earlier_checkpoints(
    recipe: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_disk / "run"
    assert main([str(recipe), f"train.output_dir={run}", *STEPS, "train.max_steps=2"]) == 0
    good = contents(run / "checkpoint-2")
    fill(small_disk)
    assert main([str(recipe), f"train.output_dir={run}", *STEPS]) == NOT_SAVED
    output = capsys.readouterr().err
    assert "the checkpoint of step 4 could not be written" in output and "earlier checkpoints are unchanged" in output
    assert contents(run / "checkpoint-2") == good and latest_complete(run)[0] == run / "checkpoint-2"
    assert not (run / "checkpoint-4").exists() and not list(run.glob(".checkpoint-*"))


def test_disk_full_continues_if_on_save_error_is_continue(
    recipe: Path, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = small_disk / "run"
    train(recipe, [f"train.output_dir={run}", *STEPS, "train.max_steps=2"])
    ballast = fill(small_disk)
    freed = [*STEPS, "train.max_steps=6", "train.on_save_error=continue", f"train.output_dir={run}"]
    with pytest.MonkeyPatch.context() as patch:
        handle = CheckpointWriter._handle_failure

        def room_again(self: CheckpointWriter, error: str, step: int) -> None:
            handle(self, error, step)
            ballast.unlink()

        patch.setattr(CheckpointWriter, "_handle_failure", room_again)
        train(recipe, freed)
    assert "the checkpoint of step 4 could not be written" in caplog.text and "continuing, because" in caplog.text
    assert not (run / "checkpoint-4").exists() and is_complete(run / "checkpoint-6")
    assert losses(run)[-1]["step"] == 6


def test_overlay_write_failure_does_not_stop_training(
    recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, rows = tmp_path / "run", recipe.parent / "rows.json"
    run.mkdir()
    (run / "overlays").write_text("a file where a folder is wanted")
    shown = [f"data.validation=[{{path: {rows}, images: {recipe.parent / 'images'}, limit: 3}}]"]
    train(recipe, [f"train.output_dir={run}", *STEPS, "train.overlay_steps=2", *shown])
    assert "the overlays could not be written" in caplog.text
    assert is_complete(run / "checkpoint-4")


def test_disk_full_leaves_no_partial_line(small_disk: Path) -> None:
    file = small_disk / "lines.jsonl"
    append_jsonl(file, {"step": 1})
    ballast = fill(small_disk, room=4096)
    with pytest.raises(OSError, match="No space left"):
        append_jsonl(file, {"step": 2}, {"step": 3, "text": "x" * 20_000})
    ballast.unlink()
    append_jsonl(file, {"step": 4})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 4]


@pytest.mark.parametrize("way", ["closed", "read-only"])
def test_read_only_folder_ends_the_run_and_keeps_earlier_checkpoints(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """File modes do not stop root: the folder is made immutable, or its mount read-only, before the save."""
    run = tmp_path / "run"
    assert main([str(recipe), f"train.output_dir={run}", *STEPS, "train.max_steps=2"]) == 0
    good, begin = contents(run / "checkpoint-2"), CheckpointWriter._make_draft
    place = run if way == "closed" else draft_folder(run, 4)
    close, reopen, message = {
        "closed": (["chattr", "+i"], ["chattr", "-i"], "Operation not permitted"),
        "read-only": (["mount", "-t", "tmpfs", "-o", "ro", "tmpfs"], ["umount", "-l"], "Read-only file system"),
    }[way]

    def closed(self: CheckpointWriter, step: int) -> None:
        place.mkdir(exist_ok=True)
        if subprocess.run([*close, str(place)], capture_output=True).returncode:
            pytest.skip("only root can close a folder to itself, on some file systems")
        begin(self, step)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointWriter, "_make_draft", closed)
            assert main([str(recipe), f"train.output_dir={run}", *STEPS]) == NOT_SAVED
    finally:
        subprocess.run([*reopen, str(place)], check=False)
    output = capsys.readouterr().err
    assert message in output or "busy" in output
    assert contents(run / "checkpoint-2") == good and latest_complete(run)[0] == run / "checkpoint-2"
