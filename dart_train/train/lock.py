"""One run in a folder: two would write over each other's checkpoints.

The lock is the kernel's, on an open file: it ends with the process that holds it, however that one ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

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
