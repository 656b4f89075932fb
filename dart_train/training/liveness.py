"""The other ranks: which of them is gone when nothing comes back any more, and an end to waiting for it.

A rank that dies closes its connections, and the launcher ends the rest within half a minute. What nobody notices
is a rank that is stopped, or a link that is cut: groups that DeepSpeed makes wait by their own, far longer timeouts.
Hence the watch: a rank that has done nothing for `train.timeout_seconds` leaves, and says who is missing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed as dist

# One run in a folder: two would write over each other's checkpoints.
#
# The lock is the kernel's, on an open file: it ends with the process that holds it, however that one ends.

NAME = ".lock"
_CANNOT = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}  # file systems without locks


class Lock:
    """Taken by the first rank for the whole run."""

    def __init__(self, run: Path) -> None:
        self.file = run / NAME
        self.handle: int | None = None

    def take(self) -> None:
        """Raises ValueError where another run holds it. Taking it again is nothing."""
        if self.handle is not None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read(handle)
            os.close(handle)
            if error.errno in _CANNOT:
                return
            raise ValueError(
                f"train.output_dir: another run trains in {self.file.parent} ({holder}); wait for it or end it, or "
                "choose another folder. Nothing was touched"
            ) from error
        self.handle = handle
        # Loader processes are forked off and would hold it on, a while, behind a killed run.
        os.register_at_fork(after_in_child=lambda: self._close(handle))
        _write(handle)

    def release(self) -> None:
        if self.handle is not None:
            self._close(self.handle)

    def _close(self, handle: int) -> None:
        if self.handle == handle:
            os.close(handle)
            self.handle = None


def _write(handle: int) -> None:
    os.truncate(handle, 0)
    os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _read(handle: int) -> str:
    try:
        told = json.loads(os.pread(handle, 1000, 0))
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which one is not known"


# Asked to stop: the step is finished, a checkpoint written, and every rank leaves at the same step.
#
# Schedulers send SIGTERM (or SIGUSR1, some time before); the launcher passes SIGTERM on and kills after 30 seconds.
# A launcher that was killed itself can pass nothing on: its ranks notice and leave in the same way, those too that it
# left while they were still loading. DeepSpeed's own command, killed before they have begun to, is not missed:
# they train # on under the launcher that it has started.

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_SECONDS = 1.0


class StopRequest:
    """Made before anything takes long; a context round the training. `why` says who asked, or is None."""

    def __init__(self, launched: bool) -> None:
        self.why: str | None = "the launcher is gone" if launched and _launcher_is_gone() else None
        self.done = False  # every rank has agreed to it
        self.parents = _launchers() if launched else {}
        self._before: dict[int, Any] = {}
        self._over = threading.Event()

    def __enter__(self) -> StopRequest:
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


def _launcher_is_gone() -> bool:
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


LOST = 5  # exit code of a rank that has lost another
_SETTLE_SECONDS = 5.0  # a process that fails closes its connections some time before it is gone
_SIGNS = ("Connection closed by peer", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL",
          "Connection refused", "Socket")  # fmt: skip


class LostRankError(RuntimeError):
    """Another rank is gone, or silent for too long. `speaks`: this rank tells it for all."""

    speaks = True


@dataclass(frozen=True)
class Peer:
    rank: int
    host: str
    pid: int
    birth: str

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    def fault(self) -> str | None:
        if not self.here:
            return None
        if birth(self.pid) != self.birth:
            return f"rank {self.rank} (process {self.pid} on {self.host}) is gone"
        return f"rank {self.rank} (process {self.pid} on {self.host}) is stopped" if state(self.pid) == "T" else None


class RankMonitor:
    """Made on every rank once they have met. A context: inside it the watch is kept."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.beaten = timeout, time.monotonic()
        self.all = self._introduce()
        self._over = threading.Event()

    def _introduce(self) -> list[Peer]:
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return []
        me = Peer(dist.get_rank(), socket.gethostname(), os.getpid(), birth(os.getpid()))
        found: list[Peer] = [me] * dist.get_world_size()
        dist.all_gather_object(found, me)
        return found

    def __enter__(self) -> RankMonitor:
        self.beat()
        if self.all:
            threading.Thread(target=self._watch, name="silence-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """This rank has done something."""
        self.beaten = time.monotonic()

    def _watch(self) -> None:
        silent = 0.0
        while not self._over.wait(min(max(self.timeout - silent, 0.1), 5.0)):
            silent = time.monotonic() - self.beaten
            if silent >= self.timeout:
                told = f"nothing has happened for {silent:.0f} s (train.timeout_seconds: {self.timeout:g})"
                print(f"train (rank {dist.get_rank()}): {told}; {self.missing()}", file=sys.stderr, flush=True)
                os._exit(LOST)  # the main thread waits inside a collective, out of reach

    def explain(self, error: RuntimeError) -> LostRankError | None:
        """What an error of a collective means; None where it is of another kind."""
        if not self.all or not any(sign in str(error) for sign in _SIGNS):
            return None
        until = time.monotonic() + _SETTLE_SECONDS
        while not self._faults() and time.monotonic() < until:
            time.sleep(0.2)
        first = str(error).strip().splitlines()[0]
        lost = LostRankError(f"{self.missing()} ({first})")
        lost.speaks = self._lowest()
        return lost

    def _lowest(self) -> bool:
        """Of those left on this host."""
        left = [peer.rank for peer in self.all if peer.here and peer.fault() is None]
        return not left or dist.get_rank() == min(left)

    def missing(self) -> str:
        faults = self._faults()
        others = sorted({peer.host for peer in self.all if not peer.here})
        if faults:
            said = ", ".join(faults)
        elif others:
            ranks = {host: [str(peer.rank) for peer in self.all if peer.host == host] for host in others}
            named = "; ".join(f"{host} (rank {', '.join(ranks[host])})" for host in others)
            said = f"every rank of this host is alive: look at {named}, and at the link to it"
        else:
            said = "every rank is alive, but one of them does not come along"
        return f"{said}. Its own output says why. The same command goes on from the newest whole checkpoint"

    def _faults(self) -> list[str]:
        return [fault for peer in self.all if (fault := peer.fault()) is not None]
