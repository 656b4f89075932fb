"""The other ranks: which of them is gone when nothing comes back any more, and an end to waiting for it.

A rank that dies closes its connections, and the launcher ends the rest within half a minute. What nobody notices
is a rank that is stopped, or a link that is cut: groups that DeepSpeed makes wait by their own, far longer timeouts.
Hence the watch: a rank that has done nothing for `train.timeout_seconds` leaves, and says who is missing."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from dataclasses import dataclass

import torch.distributed as dist

from .stopping import birth, state

LOST = 5  # exit code of a rank that has lost another
_SETTLE_SECONDS = 5.0  # a process that fails closes its connections some time before it is gone
_SIGNS = ("Connection closed by peer", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL",
          "Connection refused", "Socket")  # fmt: skip


class LostRank(RuntimeError):
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


class Peers:
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

    def __enter__(self) -> Peers:
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

    def explain(self, error: RuntimeError) -> LostRank | None:
        """What an error of a collective means; None where it is of another kind."""
        if not self.all or not any(sign in str(error) for sign in _SIGNS):
            return None
        until = time.monotonic() + _SETTLE_SECONDS
        while not self._faults() and time.monotonic() < until:
            time.sleep(0.2)
        first = str(error).strip().splitlines()[0]
        lost = LostRank(f"{self.missing()} ({first})")
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
