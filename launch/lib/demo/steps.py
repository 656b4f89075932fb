"""One command of the demo: shown as it would be typed, run with its own progress bars, timed."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Steps:
    """Runs commands in order; the first that fails ends the demo with its exit code."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, command: Sequence[str]) -> None:
        print(f"\n== {title}\n$ {shlex.join(command)}", flush=True)
        begin = time.perf_counter()
        code = subprocess.run(command, check=False).returncode
        self.seconds[title] = time.perf_counter() - begin
        if code:
            print(f"demo: stopped, because this failed with exit code {code}: {title}", file=sys.stderr)
            raise SystemExit(code)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def told(self) -> str:
        lines = [f"{seconds:7.0f} s  {title}" for title, seconds in self.seconds.items()]
        return "\n".join([*lines, f"{self.total:7.0f} s  in all"])


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def deepspeed(ranks: int, script: str, *arguments: str) -> list[str]:
    """The launcher on this machine's own ranks; a port of its own, so that two demos do not meet."""
    return [
        *python("-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(_free_port())),
        script,
        *arguments,
    ]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
