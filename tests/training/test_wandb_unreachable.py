"""W&B that is unreachable, or accepts and never answers: training continues, and the offline files are complete."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from dart_train.checkpoints import is_complete
from dart_train.common.trackers import wandb_mode
from dart_train.training.callbacks import MetricsFile
from tests.fixtures.faults import fill
from tests.fixtures.run_scene import free_port, losses, make_recipe
from tests.training.test_metrics_log import wandb_history

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = ["train.max_steps=2", "train.per_device_batch_size=2", "log.report_to=[wandb]", "train.save_steps=2"]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        kept = []
        threading.Thread(target=lambda: kept.append(_accept(server)), daemon=True).start()
        yield server.getsockname()[1]


def _accept(server: socket.socket) -> list[socket.socket]:
    taken = []
    try:
        while True:
            taken.append(server.accept()[0])
    except OSError:
        return taken


def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> Path:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(sys.modules[wandb_mode.__module__], "_WAIT_SECONDS", 3)
    train(make_recipe(tmp_path), STEPS)
    return tmp_path / "run"


def on_disk(run: Path) -> None:
    """W&B's process still writes for a moment after the run has ended."""
    expected = {row["step"]: row["loss"] for row in losses(run)}
    assert len(expected) == 2
    for _ in range(600):
        logged = {row["train/global_step"]: row["train/loss"] for row in wandb_history(run)[0] if "train/loss" in row}
        if logged == expected:
            return
        time.sleep(0.1)
    raise AssertionError(f"{logged} on the disk, expected {expected}")


def test_wandb_server_refusing_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk(go(tmp_path, monkeypatch, free_port()))
    assert "W&B cannot be reached" in caplog.text and "wandb sync" in caplog.text


def test_wandb_server_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: int, caplog: pytest.LogCaptureFixture
) -> None:
    on_disk(go(tmp_path, monkeypatch, silent))
    assert "the run continues" in caplog.text


@pytest.mark.parametrize("moment", ["from the start", "in the middle"])
def test_wandb_disk_full_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """W&B's folder is a disk of its own; the run's own files are on another disk."""
    recipe, disk = make_recipe(tmp_path), tmp_path / "run" / "wandb"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems can only be mounted by root")
    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        if moment == "from the start":
            fill(disk, room=0)
        else:
            original = MetricsFile.on_log

            def on_log(self: MetricsFile, args: Any, state: Any, *given: Any, **named: Any) -> None:
                original(self, args, state, *given, **named)
                if state.global_step == 2 and not (disk / "ballast").exists():
                    fill(disk, room=0)

            monkeypatch.setattr(MetricsFile, "on_log", on_log)
        train(recipe, [*STEPS, "train.max_steps=4"])
        assert (disk / "ballast").exists()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert [row["step"] for row in losses(tmp_path / "run")] == [1, 2, 3, 4]
    assert is_complete(tmp_path / "run" / "checkpoint-4")
