"""One stage as a process of its own: its log in a file, ended with all its children when its time is over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["passed", "failed", "timed out"]


@dataclass(frozen=True)
class Stage:
    """limit: seconds. figures: what the page shows of the files in the stage's folder, the most telling line first."""

    name: str
    what: str
    limit: int
    command: list[str]
    figures: Callable[[Path], list[str]]


@dataclass(frozen=True)
class Result:
    stage: Stage
    state: State
    code: int
    seconds: float
    figures: list[str]
    log: Path

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def run_stage(stage: Stage, folder: Path) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        file.write("$ " + " ".join(stage.command) + "\n")
        file.flush()
        code, timed_out = run_command(stage.command, stage.limit, file)
        if timed_out:
            file.write(f"\nended after the stage's limit of {stage.limit} s\n")
    state: State = "timed out" if timed_out else "passed" if code == 0 else "failed"
    seconds = time.monotonic() - started
    try:
        figures = stage.figures(folder)
    except Exception as error:  # what a failed stage left may be incomplete: the page must still be written
        figures = [f"no figures: {type(error).__name__}: {error}"]
        state = "failed" if state == "passed" else state
    return Result(stage, state, code, seconds, figures, log)


def run_command(command: list[str], limit: float, log: object, env: dict[str, str] | None = None) -> tuple[int, bool]:
    """(exit code, whether the limit ended it). The process gets a group of its own, so that children end with it."""
    process = subprocess.Popen(
        command,
        stdout=log,  # type: ignore[call-overload]
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=None if env is None else {**os.environ, **env},
        start_new_session=True,
    )
    try:
        return process.wait(limit), False
    except subprocess.TimeoutExpired:
        return process.returncode or 1, True
    finally:
        with contextlib.suppress(ProcessLookupError):  # children that the process itself did not end
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
