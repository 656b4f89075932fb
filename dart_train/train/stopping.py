"""Asked to stop: the step is finished, a checkpoint written, and every rank leaves at the same step.

Schedulers send SIGTERM (or SIGUSR1, some time before); the launcher passes SIGTERM on and kills after 30 seconds.
A launcher that was killed itself can pass nothing on: its ranks notice and leave in the same way, those too that it
left while they were still loading. DeepSpeed's own command, killed before they have begun to, is not missed: they train
on under the launcher that it has started."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0


class Stopping:
    """Made before anything takes long; a context round the training. `why` says who asked, or is None."""

    def __init__(self, launched: bool) -> None:
        self.why: str | None = "the launcher is gone" if launched and _orphaned() else None
        self.done = False  # every rank has agreed to it
        self.parents = _launchers() if launched else {}
        self._before: dict[int, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self._before = {number: signal.signal(number, self._asked) for number in _SIGNALS}
        if self.parents:
            threading.Thread(target=self._look, name="launcher-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.why = signal.Signals(number).name

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            gone = [pid for pid, born in self.parents.items() if birth(pid) != born]
            if gone:
                self.why = f"the launcher (process {gone[0]}) is gone"
                return


def _orphaned() -> bool:
    """DeepSpeed's launcher gives its ranks this argument: one with another parent has been left and adopted."""
    given = any(each.startswith("--local_rank=") for each in sys.argv) and "TORCHELASTIC_RUN_ID" not in os.environ
    return given and b"deepspeed" not in _command(os.getppid())


def _launchers() -> dict[int, str]:
    """This rank's launcher and, where DeepSpeed's own command started it, that command: process -> its birth."""
    parent = os.getppid()
    found = [parent]
    above = int(_stat(parent).get("parent", 0))
    if above > 1 and b"deepspeed" in _command(above):
        found.append(above)
    return {pid: born for pid in found if (born := birth(pid))}


def birth(pid: int) -> str:
    """When a process started: with its number, what tells it from any other. Empty: it is gone, or a zombie."""
    told = _stat(pid)
    return "" if told.get("state", "Z") == "Z" else told["birth"]


def state(pid: int) -> str:
    """`T` is stopped, `Z` dead and not yet buried; empty where there is none."""
    return _stat(pid).get("state", "")


def _stat(pid: int) -> dict[str, str]:
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return {}
    return {"state": told[0], "parent": told[1], "birth": told[19]}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
