"""`launch/ranks.py`: one request to stop is one line, a checkpoint and exit code 75, as without a launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dart_train.checkpoints import latest_complete
from dart_train.cli.options import STOPPED
from tests.faults.launched import logged_step, wait
from tests.fixtures.run_scene import ROOT, free_port, losses, make_recipe

pytestmark = pytest.mark.deepspeed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_exits_with_75_and_prints_no_traceback(tmp_path: Path, number: signal.Signals) -> None:
    recipe, run, log = make_recipe(tmp_path), tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "launch/ranks.py", "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["launch/train.py", str(recipe), "train.per_device_batch_size=1", "train.max_steps=100000"]
    command += ["train.save_steps=100000", "data.workers=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        began = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # ignored where the tests run in background
        )
    wait(lambda: began.poll() is not None or ((run / "metrics.jsonl").is_file() and len(losses(run)) > 1), "no step")
    below = psutil.Process(began.pid).children(recursive=True)
    os.killpg(began.pid, number)  # as a terminal: the command, and not the session that it made for the ranks
    code, text = began.wait(300), log.read_text(errors="replace")
    assert code == STOPPED and "Traceback" not in text, text[-3000:]
    assert text.count("Ctrl-C again ends at once") == 1 and "Killing subprocess" not in text
    assert text.count("Run the same command to resume from") == 1
    assert latest_complete(run)[0] == run / f"checkpoint-{logged_step(run)}"
    assert not psutil.wait_procs(below, timeout=30)[1]
