"""Whatever stops an export: a folder of its name was verified, or does not exist."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dart_train
from dart_train.exporting import verify, verify_process
from tests.fixtures.run_scene import ROOT
from tests.fixtures.runs import Runs

pytestmark = pytest.mark.drill


def started(run: Path, out: Path) -> subprocess.Popen[str]:
    """A running export that has written its weights."""
    command = [sys.executable, "-m", "dart_train", "export", str(run), "--out", str(out)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True, preexec_fn=_with_sigint
    )
    weights = out.parent / f".{out.name}.unfinished" / "model.safetensors"
    while not weights.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
    return process


def _with_sigint() -> None:
    """A process that a shell starts in the background ignores SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_sigkill_leaves_no_export_and_the_next_one_cleans_up(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = started(runs("full"), out)
    process.kill()
    process.wait()
    assert not out.exists()
    monkeypatch.setattr(verify, "_run_in_fresh_process", lambda scratch, job: verify_process.main(job))
    dart_train.export(runs("full"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_sigint_leave_nothing(runs: Runs, tmp_path: Path, how: signal.Signals) -> None:
    process = started(runs("full"), tmp_path / "out")
    process.send_signal(how)
    process.communicate(timeout=300)
    assert process.returncode not in (0, None) and not list(tmp_path.iterdir())
