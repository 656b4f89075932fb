"""A checkpoint is whole when its mark is there and every file has the size that the mark names.

It is written under another name, flushed to the disk, marked last, and renamed: whatever stops the machine at
whatever moment, a folder under a checkpoint's name is whole, or its mark tells that it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.io import fsync_path

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished"  # suffix of what is being written
_REPLACED = ".replaced"  # suffix of what makes room for a checkpoint of the same step
_DISCARDED = ".discarded"  # suffix of what is being removed


@dataclass(frozen=True)
class IncompleteCheckpoint:
    """A checkpoint that was passed over, and why."""

    folder: Path
    why: str

    def __str__(self) -> str:
        return f"{self.folder.name} is not whole and was passed over: {self.why}"


def unfinished(run: Path, step: int) -> Path:
    """Where the files of that step's checkpoint are written before it is one."""
    return run / f".checkpoint-{step}{_UNFINISHED}"


def seal(folder: Path, target: Path, about: Mapping[str, Any] | None = None) -> None:
    """Turns the finished `folder` into the checkpoint `target`. `about` is written into the mark."""
    sizes = {}
    for file in _files(folder):
        fsync_path(file)
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    mark = folder / MARK
    mark.write_text(json.dumps({**(about or {}), "files": sizes}, indent=1), encoding="utf-8")
    fsync_path(mark)
    for place in {mark.parent, *(folder / name for name in sizes)}:
        fsync_path(place if place.is_dir() else place.parent)
    replaced = target.with_name(f".{target.name}{_REPLACED}")
    if target.exists():
        os.replace(target, replaced)
    os.replace(folder, target)
    fsync_path(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def problems(folder: Path) -> str | None:
    """Why the checkpoint is not whole, or None."""
    try:
        sizes = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
        missing = [name for name in sizes if not (folder / name).is_file()]
        cut = [name for name in sizes if name not in missing and (folder / name).stat().st_size != sizes[name]]
    except FileNotFoundError:
        return f"{MARK} is missing, so it was never finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MARK} cannot be read: {error}"
    if missing:
        return f"missing: {', '.join(missing[:3])}"
    return f"not of the size that was written: {', '.join(cut[:3])}" if cut else None


def is_complete(folder: Path) -> bool:
    return problems(folder) is None


def latest_complete(run: Path) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    """The whole checkpoint of the highest step, and the damaged ones above it."""
    passed: list[IncompleteCheckpoint] = []
    for folder in sorted(checkpoints(run), key=steps_of, reverse=True):
        why = problems(folder)
        if why is None:
            return folder, passed
        passed.append(IncompleteCheckpoint(folder, why))
    return None, passed


def checkpoints(run: Path) -> list[Path]:
    found = run.iterdir() if run.is_dir() else []
    return [folder for folder in found if folder.is_dir() and _NAME.fullmatch(folder.name)]


def steps_of(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"{folder} is no checkpoint: expected a folder named checkpoint-<step>")
    return int(found[1])


def sweep(run: Path, keep: int | None = None, best: Path | None = None) -> None:
    """Removes what writing left behind, and all but the newest `keep` checkpoints; the best one is kept besides,
    and the newest whole one whatever happens."""
    for replaced in run.glob(f".checkpoint-*{_REPLACED}"):
        target = run / replaced.name.removeprefix(".").removesuffix(_REPLACED)
        if not target.exists():  # killed between the two renames
            os.replace(replaced, target)
    for suffix in (_UNFINISHED, _REPLACED, _DISCARDED):
        for leftover in run.glob(f".checkpoint-*{suffix}"):
            shutil.rmtree(leftover, ignore_errors=True)
    if keep is None:
        return
    whole = sorted((folder for folder in checkpoints(run) if is_complete(folder)), key=steps_of)
    for folder in whole[:-keep]:
        if best is None or folder.name != best.name:
            _discard(folder)


def _discard(folder: Path) -> None:
    """At once, by its name: a kill in the middle leaves no half checkpoint behind."""
    hidden = folder.with_name(f".{folder.name}{_DISCARDED}")
    try:
        os.replace(folder, hidden)
    except OSError:
        return  # it stays for another time
    shutil.rmtree(hidden, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)
