"""One run in a folder at a time: two would overwrite each other's checkpoints.

The lock is the kernel's, on an open file: it ends with the process that holds it, however that process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

LOCK_FILE = ".lock"
_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}  # by the file system


class RunLock:
    """Taken by the first rank for the duration of a run."""

    def __init__(self, run: Path) -> None:
        self.file = run / LOCK_FILE
        self.handle: int | None = None

    def take(self) -> None:
        """Raises ValueError if another run holds it. Does nothing if this one does."""
        if self.handle is not None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _read_holder(handle)
            os.close(handle)
            if error.errno in _NOT_SUPPORTED:
                return
            raise ValueError(
                f"train.output_dir: another run is training in {self.file.parent} ({holder}); wait for it, stop it, or "
                "choose another folder. Nothing was changed"
            ) from error
        self.handle = handle
        # Data loader processes are forked and would hold the lock for a while after the run was killed.
        os.register_at_fork(after_in_child=lambda: self._close(handle))
        os.truncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def release(self) -> None:
        if self.handle is not None:
            self._close(self.handle)

    def _close(self, handle: int) -> None:
        if self.handle == handle:
            os.close(handle)
            self.handle = None


def _read_holder(handle: int) -> str:
    try:
        holder = json.loads(os.pread(handle, 1000, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is not known"
