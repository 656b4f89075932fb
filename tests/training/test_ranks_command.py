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

# In place of DeepSpeed's launcher: two ranks that end as a training does which was requested to stop.
LAUNCHER = r"""
import os, subprocess, sys

rank = "import os, signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); os.write(1, b'1\\n')"
command = [sys.executable, "-c", rank + "; time.sleep(60)"]
ranks = [subprocess.Popen(command, env={**os.environ, "RANK": number}) for number in "01"]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_one_request_to_the_ranks(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "deepspeed" / "launcher"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "runner.py").write_text(LAUNCHER)
    with subprocess.Popen(
        [sys.executable, str(ROOT / "launch/ranks.py"), "train.py"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored where the tests run in background
    ) as began:
        assert began.stdout is not None
        assert [began.stdout.readline() for _ in range(2)] == ["1\n", "1\n"]
        began.send_signal(number)
        _, errors = began.communicate(timeout=120)
    assert began.returncode == STOPPED and errors.count("Ctrl-C again ends at once") == 1


@pytest.mark.deepspeed
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
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
