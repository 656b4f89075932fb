"""SIGTERM and SIGUSR1: the step is finished and saved, and the run exits with its own code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from dart_train import train
from dart_train.checkpoints import latest_complete
from dart_train.cli.options import STOPPED
from dart_train.cli.training import train as main
from dart_train.training import liveness as stopping
from dart_train.training import run as run_module
from dart_train.training.liveness import StopRequest, process_start_time
from tests.fixtures.run_scene import losses, make_recipe

LONG = ["train.max_steps=6", "train.save_steps=100", "train.per_device_batch_size=2"]


class Asks(TrainerCallback):
    """Sends a signal to its own process in the middle of step 3."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_sigterm_finishes_and_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    recipe, reporters, before = make_recipe(tmp_path), run_module._reporters, signal.getsignal(number)
    uninterrupted = tmp_path / "uninterrupted"
    train(recipe, [*LONG, f"train.output_dir={uninterrupted}"])
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_reporters", lambda prepared: [*reporters(prepared), Asks(number)])
        assert main([str(recipe), *LONG]) == STOPPED
    assert f"stopped at step 3 ({number.name}). Run the same command to resume from " in capsys.readouterr().out
    assert latest_complete(tmp_path / "run")[0] == tmp_path / "run" / "checkpoint-3"
    assert signal.getsignal(number) is before
    assert main([str(recipe), *LONG]) == 0
    assert [line["loss"] for line in losses(tmp_path / "run")] == [line["loss"] for line in losses(uninterrupted)]


TWO_WORKERS = ["data.workers=2", "train.max_steps=40", "train.save_steps=1000", "train.per_device_batch_size=2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_all_processes_of_a_run_with_loader_processes(tmp_path: Path, number: signal.Signals) -> None:
    """As Ctrl-C in a terminal, or a scheduler's kill, sends it: the loader's processes get it too."""
    recipe, run = make_recipe(tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "dart_train", "train", str(recipe), *TWO_WORKERS]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True
    ) as process:  # fmt: skip
        _until(lambda: process.poll() is not None or ((run / "metrics.jsonl").is_file() and len(losses(run)) >= 2))
        os.killpg(process.pid, number)
        code = process.wait(60)
    output = (tmp_path / "log").read_text()
    assert code == STOPPED and "Traceback" not in output, output[-3000:]
    assert output.count(f"stopped at step {losses(run)[-1]['step']} ({number.name})") == 1
    assert latest_complete(run)[0] == run / f"checkpoint-{losses(run)[-1]['step']}"


def test_second_ctrl_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest(launched=False)
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun repeats the terminal's
        assert stop.reason == "SIGINT"
        monkeypatch.setattr(stopping, "_REPEATED_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_process_start_time_of_a_killed_process() -> None:
    child = subprocess.Popen(["sleep", "60"])
    assert process_start_time(child.pid) and process_start_time(child.pid) == process_start_time(child.pid)
    child.kill()
    _until(lambda: not process_start_time(child.pid))  # a zombie is gone
    child.wait()
    assert not process_start_time(child.pid)


ORPHAN = """
import os, sys, time
from dart_train.training.liveness import StopRequest
with StopRequest(launched=True) as stopping:
    print("ready", flush=True)
    while stopping.reason is None:
        time.sleep(0.1)
open(sys.argv[1], "w").write(stopping.reason)
"""


def test_killed_launcher_is_detected(tmp_path: Path) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}, {str(tmp_path / 'why')!r}])"
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
    launcher.kill()
    launcher.wait()
    _until((tmp_path / "why").exists)
    _until(lambda: "is gone" in (tmp_path / "why").read_text())
    assert str(launcher.pid) in (tmp_path / "why").read_text()


def test_launcher_that_was_gone_before_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a rank is that DeepSpeed's launcher has started: with this argument, but under another parent by now."""
    parent = b"init"
    monkeypatch.setattr(stopping, "_command", lambda pid: parent)
    assert StopRequest(launched=True).reason is None
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--local_rank=1"])
    assert StopRequest(launched=True).reason == "the launcher is gone"
    assert StopRequest(launched=False).reason is None
    parent = b"python -m deepspeed.launcher.launch"
    assert StopRequest(launched=True).reason is None
    parent = b"torchrun"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "as torchrun has it")
    assert StopRequest(launched=True).reason is None


def test_no_launcher_watch_without_launcher() -> None:
    assert StopRequest(launched=False).launchers == {}
    assert json.dumps(StopRequest(launched=True).launchers)


def _until(true: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
