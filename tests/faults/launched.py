"""A run of two ranks started by the real launcher, in its own process session, for tests that kill processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.fixtures.run_scene import ROOT, free_port

SMALL = ["train.per_device_batch_size=1", "parts.lora={rank: 4, dropout: 0.2}"]
PATIENCE = 1500.0  # seconds, also on a busy machine


class Launched:
    """`deepspeed launch/train.py RECIPE`, output in `log`."""

    def __init__(
        self,
        recipe: Path,
        *overrides: str,
        log: Path,
        how: Sequence[str] = ("--num_gpus", "2"),
        before: Sequence[str] = (),
        port: int | None = None,
        **environment: str,
    ) -> None:
        """how: options of the launcher; before: a command that it is run under."""
        self.port, self.log = port or free_port(), log
        command = [*before, sys.executable, "-m", "deepspeed.launcher.runner", *how]
        command += ["--master_port", str(self.port), str(ROOT / "launch/train.py"), str(recipe), *overrides]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", **environment}
        with log.open("ab") as out:
            self.runner = subprocess.Popen(
                command, env={**os.environ, **settings}, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )
        self.known: dict[int, psutil.Process] = {}

    def family(self) -> list[psutil.Process]:
        """Every live process of the session, also after its parents have exited."""
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.runner.pid:
                    self.known[process.pid] = process
            except (OSError, psutil.Error):
                continue
        return [each for each in self.known.values() if _lives(each)]

    def rank(self, number: int) -> psutil.Process | None:
        for process in self.family():
            try:
                line = process.cmdline()
            except psutil.Error:
                continue
            if f"--local_rank={number}" in line and "deepspeed.launcher.runner" not in line:
                return process
        return None

    def launcher(self) -> psutil.Process:
        return psutil.Process(self.runner.pid)

    def end(self) -> int:
        """Waits until nothing of it is left; the exit code of the command."""
        wait(lambda: not self.family() and self.runner.poll() is not None, "the run did not end", self)
        return int(self.runner.returncode)

    def kill_all(self) -> None:
        for process in self.family():
            process.kill()
        self.runner.wait()

    def held_ports(self, seconds: float = 30.0) -> list[Any]:
        """Connections that still listen on its port: a process closes its files a moment after it ends."""
        end = time.monotonic() + seconds
        while held := [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN
                       and each.laddr.port == self.port]:  # fmt: skip
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return held


def wait(true: Callable[[], Any], message: str, run: Launched | None = None, pause: float = 0.1) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            output = run.log.read_text(errors="replace")[-3000:] if run else ""
            if run:
                run.kill_all()
            raise AssertionError(f"{message}\n{output}")
        time.sleep(pause)


def wait_for_step(run: Launched, folder: Path, step: int) -> None:
    """Until it has done that step; a run that ended before is not waited for."""
    wait(lambda: logged_step(folder) >= step or run.runner.poll() is not None, f"step {step} was not done", run)
    assert logged_step(folder) >= step, f"it ended before step {step}\n{run.log.read_text(errors='replace')[-3000:]}"


def logged_step(folder: Path) -> int:
    """The last step in metrics.jsonl."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines if '"loss"' in line and line.endswith("}")), default=0)
    except (OSError, ValueError):
        return 0


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written now."""
    try:
        return any(name.endswith(".unfinished") and "checkpoint" in name for name in os.listdir(folder))
    except OSError:
        return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
