"""Harm done to a trainer, and to the place that it saves to."""

from __future__ import annotations

import errno
import hashlib
import json
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dart_train.train.ranks import Ranks


def poison(trainer: Any, rank: int, step: int, what: str) -> None:
    """One rank's loss, or gradient, is no number in one step (1 is the first), last forward."""
    compute, forwards = trainer.compute_loss, trainer.args.gradient_accumulation_steps
    calls = 0

    def harmed(*given: Any, **named: Any) -> Any:
        nonlocal calls
        loss, calls = compute(*given, **named), calls + 1
        if Ranks.read().rank != rank or calls != step * forwards:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss
        return loss * float(what)

    trainer.compute_loss = harmed


class Starve(TrainerCallback):
    """Before a step (1 is the first) one rank takes away what saving needs. What the newest checkpoint held until then
    is written to `note`."""

    def __init__(self, trainer: Any, rank: int, step: int, how: str, note: Path) -> None:
        self.run, self.step, self.how, self.note = trainer.saver.run, step, how, note
        self.mine = Ranks.read().rank == rank
        self.undo: Callable[[], Any] = lambda: None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.mine and state.global_step == self.step - 1:
            self.note.write_text(json.dumps(digests(self.run)))
            self.undo = WAYS[self.how](self.run)


def digests(run: Path) -> dict[str, str]:
    """Of every file of every checkpoint."""
    files = [file for file in sorted(run.glob("checkpoint-*/**/*")) if file.is_file()]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def fill(disk: Path, room: int = 64 * 1024) -> Path:
    """A file that leaves only `room` bytes of the disk."""
    file = disk / "ballast"
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
    with file.open("r+b") as ballast:
        ballast.truncate(file.stat().st_size - room)
    return file


def _full(run: Path) -> Callable[[], Any]:
    return fill(run.parent).unlink


def _small_files(run: Path, limit: int = 20_000) -> Callable[[], Any]:
    """This process may write none above the limit: a quota of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _closed(run: Path) -> Callable[[], Any]:
    """Modes of files would not keep root out."""
    subprocess.run(["chattr", "+i", str(run)], check=True)
    return lambda: subprocess.run(["chattr", "-i", str(run)], check=True)


def _read_only(run: Path) -> Callable[[], Any]:
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(run.parent)], check=True)

    remount("ro")
    return lambda: remount("rw")


WAYS = {"full": _full, "small files": _small_files, "closed": _closed, "read-only": _read_only}
