"""One run in a folder, and a lock that no dead process holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dart_train.cli.training import train as main
from dart_train.training.run_lock import RunLock
from tests.fixtures.run_scene import make_recipe

HOLD = """
import os, sys, time
from pathlib import Path
from dart_train.training.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
if sys.argv[2] == "alone" or os.fork() == 0:
    print(os.getpid(), flush=True)  # the child itself: it has left the lock by now
time.sleep(600)
"""


def holder(run: Path, kind: str = "alone") -> tuple[subprocess.Popen[str], int]:
    """A process that holds the lock, and the number of its child."""
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(run), kind], stdout=subprocess.PIPE, text=True)
    assert held.stdout is not None
    return held, int(held.stdout.readline())


def test_run_lock_refuses_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    held, _ = holder(run)
    try:
        assert main([str(recipe)]) == 2
        output = capsys.readouterr().err
        assert "another run is training in" in output and f"process {held.pid} on" in output
        assert [path.name for path in run.iterdir()] == [".lock"]
    finally:
        held.kill()
        held.wait()


def test_run_lock_ends_with_a_killed_run(tmp_path: Path) -> None:
    """Though a loader process, forked off it, lives on."""
    held, child = holder(tmp_path, "fork")
    try:
        with pytest.raises(ValueError, match="another run is training in"):
            RunLock(tmp_path).take()
        held.kill()
        held.wait()
        RunLock(tmp_path).take()
    finally:
        os.kill(child, signal.SIGKILL)


def test_run_lock_can_be_taken_again_after_release(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    first.take()
    first.take()
    with pytest.raises(ValueError, match="another run"):
        second.take()
    first.release()
    second.take()
    second.release()
