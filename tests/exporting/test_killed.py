"""Whatever stops an export, no folder of its name is left that is not a proven one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dart_train
from dart_train.exporting import verify as prove
from dart_train.exporting import verify_process as fresh
from tests.fixtures.run_scene import ROOT
from tests.fixtures.runs import Runs

pytestmark = pytest.mark.drill


def started(run: Path, out: Path) -> subprocess.Popen[str]:
    """An export that has written its weights and is not done."""
    command = [sys.executable, "-m", "dart_train", "export", str(run), "--out", str(out)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE, text=True, preexec_fn=_heeding)
    weights = out.parent / f".{out.name}.unfinished" / "model.safetensors"
    while not weights.exists():
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.05)
    return process


def _heeding() -> None:
    """What a shell starts in the background is deaf to SIGINT, and so are its children: tests may run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_sweeps(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = started(runs("full"), out)
    process.kill()
    process.wait()
    assert not out.exists()
    monkeypatch.setattr(prove, "_run", lambda room, job: fresh.main(job))
    dart_train.export(runs("full"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_export_that_is_stopped_leaves_nothing_at_all(runs: Runs, tmp_path: Path, how: signal.Signals) -> None:
    process = started(runs("full"), tmp_path / "out")
    process.send_signal(how)
    process.communicate(timeout=300)
    assert process.returncode not in (0, None) and not list(tmp_path.iterdir())
