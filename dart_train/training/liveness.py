"""Ending a run in an orderly way: requests to stop, launchers that are gone, and ranks that are lost or silent.

Requests to stop. Schedulers send SIGTERM, or SIGUSR1 some time before; Ctrl-C sends SIGINT to every process of the
terminal; the launcher passes both on as SIGTERM and kills after 30 seconds. The step is finished, a checkpoint written,
and every rank leaves after the same step. A launcher that was killed passes nothing on: its ranks notice and stop in
the same way, also those that were still loading. One case is not noticed: the `deepspeed` command killed before it has
started its ranks' launcher, which then trains on.

Lost ranks. A rank that dies closes its connections, and the launcher ends the others within half a minute. A rank that
is suspended, or a broken link, is not noticed by either: groups that DeepSpeed makes wait for their own, far longer
timeouts. So each rank that has done nothing for `train.timeout_seconds` exits and reports which one is missing."""

from __future__ import annotations

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

LOST = 5  # exit code of a rank that has lost another one
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_REPEATED_SECONDS = 2.0  # torchrun sends SIGINT to ranks that have it from the terminal already
_POLL_SECONDS = 1.0
_SETTLE_SECONDS = 5.0  # a process that fails closes its connections some time before it is gone
# In messages of gloo and NCCL: that a collective failed because of another rank.
_CONNECTION_ERRORS = ("Connection closed by peer", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL",
                      "Connection refused", "Socket")  # fmt: skip


class StopRequest:
    """To be made before anything takes long, and entered as a context around the training. `reason`: who requested
    this rank to stop, or None. `agreed`: every rank stops after this step."""

    def __init__(self, launched: bool) -> None:
        self.reason: str | None = "the launcher is gone" if launched and _launcher_is_gone() else None
        self.agreed = False
        self.launchers = _launchers() if launched else {}
        self._interrupted: float | None = None  # when the first Ctrl-C came
        self._previous_handlers: dict[int, Any] = {}
        self._finished = threading.Event()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            self._previous_handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        if self.launchers:
            threading.Thread(target=self._watch_launchers, name="launcher-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._finished.set()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._on_interrupt()
        self.reason = signal.Signals(number).name

    def _on_interrupt(self) -> None:
        """The first Ctrl-C is a request to stop; a later one ends the process at once."""
        now = time.monotonic()
        if self._interrupted is not None and now - self._interrupted > _REPEATED_SECONDS:
            raise KeyboardInterrupt
        if self._interrupted is None and os.environ.get("RANK", "0") == "0":
            # Not `print`: the signal may have interrupted one.
            os.write(2, b"train: the step is finished and a checkpoint written; Ctrl-C again ends at once\n")
        self._interrupted = now if self._interrupted is None else self._interrupted

    def _watch_launchers(self) -> None:
        while not self._finished.wait(_POLL_SECONDS):
            gone = [pid for pid, started in self.launchers.items() if process_start_time(pid) != started]
            if gone:
                self.reason = self.reason or f"the launcher (process {gone[0]}) is gone"
                return


class LostRankError(RuntimeError):
    """Another rank is gone, or has been silent for too long. `reports`: this rank prints it for all."""

    reports = True


@dataclass(frozen=True)
class Peer:
    """A rank of this run. `start_time` distinguishes its process from a later one with the same id."""

    rank: int
    host: str
    pid: int
    start_time: str

    @property
    def is_on_this_host(self) -> bool:
        return self.host == socket.gethostname()

    def failure(self) -> str | None:
        """None: it is alive, or on another host."""
        if not self.is_on_this_host:
            return None
        if process_start_time(self.pid) != self.start_time:
            return f"rank {self.rank} (process {self.pid} on {self.host}) is gone"
        suspended = _process_status(self.pid).get("state") == "T"
        return f"rank {self.rank} (process {self.pid} on {self.host}) is suspended" if suspended else None


class RankMonitor:
    """To be made on every rank once there is a process group. Inside the context, a rank without a heartbeat for
    `timeout` seconds exits."""

    def __init__(self, timeout: float) -> None:
        self.timeout, self.last_heartbeat = timeout, time.monotonic()
        self.peers = _gather_peers()
        self._finished = threading.Event()

    def __enter__(self) -> RankMonitor:
        self.heartbeat()
        if self.peers:
            threading.Thread(target=self._watch, name="silence-watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raises LostRankError where another rank made a collective fail."""
        self._finished.set()
        lost = self.explain(error) if isinstance(error, RuntimeError) else None
        if lost is None:
            return
        # Here and at once: the launcher ends this rank too, and outside of `StopRequest` its SIGTERM is final.
        if lost.reports:
            print(f"train (rank {dist.get_rank()}): {lost}", file=sys.stderr, flush=True)
        raise lost from error

    def heartbeat(self) -> None:
        """This rank has done something."""
        self.last_heartbeat = time.monotonic()

    def _watch(self) -> None:
        silent = 0.0
        while not self._finished.wait(min(max(self.timeout - silent, 0.1), 5.0)):
            silent = time.monotonic() - self.last_heartbeat
            if silent >= self.timeout:
                message = f"no progress for {silent:.0f} s (train.timeout_seconds: {self.timeout:g})"
                print(f"train (rank {dist.get_rank()}): {message}; {self.describe_lost()}", file=sys.stderr, flush=True)
                os._exit(LOST)  # the main thread waits inside a collective and cannot be interrupted

    def explain(self, error: RuntimeError) -> LostRankError | None:
        """The lost rank that made a collective fail; None if the error has another cause."""
        if not self.peers or not any(sign in str(error) for sign in _CONNECTION_ERRORS):
            return None
        until = time.monotonic() + _SETTLE_SECONDS
        while not self._failures() and time.monotonic() < until:
            time.sleep(0.2)
        first_line = str(error).strip().splitlines()[0]
        lost = LostRankError(f"{self.describe_lost()} ({first_line})")
        alive = [peer.rank for peer in self.peers if peer.is_on_this_host and peer.failure() is None]
        lost.reports = not alive or dist.get_rank() == min(alive)
        return lost

    def describe_lost(self) -> str:
        """Which rank is missing, as far as this host knows, and what to do."""
        failures = self._failures()
        hosts = sorted({peer.host for peer in self.peers if not peer.is_on_this_host})
        if failures:
            found = f"{', '.join(failures)}; see that rank's log"
        elif hosts:
            ranks = {host: [str(peer.rank) for peer in self.peers if peer.host == host] for host in hosts}
            others = "; ".join(f"{host} (rank {', '.join(ranks[host])})" for host in hosts)
            found = f"all ranks on this host are running: check {others}, and the link to it"
        else:
            found = "all ranks are running but one has stopped making progress; see that rank's log"
        return f"{found}. Run the same command to resume from the newest complete checkpoint"

    def _failures(self) -> list[str]:
        return [failure for peer in self.peers if (failure := peer.failure()) is not None]


def _gather_peers() -> list[Peer]:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return []
    me = Peer(dist.get_rank(), socket.gethostname(), os.getpid(), process_start_time(os.getpid()))
    peers: list[Peer] = [me] * dist.get_world_size()
    dist.all_gather_object(peers, me)
    return peers


def _launcher_is_gone() -> bool:
    """DeepSpeed's launcher passes --local_rank to its ranks: one that has it and another parent was orphaned."""
    from_deepspeed = any(each.startswith("--local_rank=") for each in sys.argv)
    return from_deepspeed and "TORCHELASTIC_RUN_ID" not in os.environ and b"deepspeed" not in _command(os.getppid())


def _launchers() -> dict[int, str]:
    """This rank's launcher and, if the `deepspeed` command started that, the command: process -> its start time."""
    parent = os.getppid()
    found = [parent]
    grandparent = int(_process_status(parent).get("parent", 0))
    if grandparent > 1 and b"deepspeed" in _command(grandparent):
        found.append(grandparent)
    return {pid: started for pid in found if (started := process_start_time(pid))}


def process_start_time(pid: int) -> str:
    """Empty: the process is gone, or a zombie."""
    status = _process_status(pid)
    return "" if status.get("state", "Z") == "Z" else status["start_time"]


def _process_status(pid: int) -> dict[str, str]:
    """From /proc: state `T` is suspended, `Z` a zombie. Empty where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return {}
    return {"state": fields[0], "parent": fields[1], "start_time": fields[19]}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
