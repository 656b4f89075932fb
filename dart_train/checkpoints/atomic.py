"""Checkpoints that are complete or recognisably incomplete.

A checkpoint is complete when its marker, complete.json, is there and every file has the size that the marker states.
It is written under another name, flushed to the disk, marked last, and renamed: whenever the process or the machine
stops, a folder named `checkpoint-<step>` is complete, or its marker shows that it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.io import atomic_write, fsync_path

COMPLETE_MARKER = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished"  # suffix of a folder that is being written
_REPLACED = ".replaced"  # suffix of the old folder while a new one takes its name
_DISCARDED = ".discarded"  # suffix of a folder that is being removed


@dataclass(frozen=True)
class IncompleteCheckpoint:
    """A checkpoint that was skipped, and why."""

    folder: Path
    why: str

    def __str__(self) -> str:
        return f"skipping incomplete {self.folder.name}: {self.why}"


def draft_folder(run: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before it is committed."""
    return run / f".checkpoint-{step}{_UNFINISHED}"


def commit_checkpoint(folder: Path, target: Path, about: Mapping[str, Any] | None = None) -> None:
    """Turns the finished `folder` into the checkpoint `target`. `about` is written into the marker."""
    sizes = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != COMPLETE_MARKER:
            fsync_path(file)
            sizes[str(file.relative_to(folder))] = file.stat().st_size
    marker = folder / COMPLETE_MARKER
    marker.write_text(json.dumps({**(about or {}), "files": sizes}, indent=1), encoding="utf-8")
    fsync_path(marker)
    for parent in {folder, *((folder / name).parent for name in sizes)}:
        fsync_path(parent)
    replace_folder(folder, target)


def replace_file(folder: Path, name: str, content: str) -> None:
    """Replaces a file of a folder that may be a checkpoint, which is complete at every moment: the marker first stops
    naming the file, and names it with its new size at the end."""
    marker = folder / COMPLETE_MARKER
    written = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    if written is not None:
        others = {file: size for file, size in written["files"].items() if file != name}
        atomic_write(marker, json.dumps({**written, "files": others}, indent=1))
    atomic_write(folder / name, content)
    if written is not None:
        written["files"][name] = (folder / name).stat().st_size
        atomic_write(marker, json.dumps(written, indent=1))


def replace_folder(folder: Path, target: Path) -> None:
    """Gives `folder` the name `target`. An older folder of that name is removed once the new one is in place; a kill
    between the two renames is repaired by `restore_replaced`."""
    replaced = _replaced(target)
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        os.replace(target, replaced)
    os.replace(folder, target)
    fsync_path(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def restore_replaced(target: Path) -> None:
    """Gives an older folder its name back, if the process was killed before the new one took it."""
    replaced = _replaced(target)
    if replaced.exists() and not target.exists():
        os.replace(replaced, target)


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}{_REPLACED}")


def why_incomplete(folder: Path) -> str | None:
    """What is missing or damaged; None: the checkpoint is complete."""
    try:
        sizes = json.loads((folder / COMPLETE_MARKER).read_text(encoding="utf-8"))["files"]
        missing = [name for name in sizes if not (folder / name).is_file()]
        cut = [name for name in sizes if name not in missing and (folder / name).stat().st_size != sizes[name]]
    except FileNotFoundError:
        return f"missing {COMPLETE_MARKER}, which is written last"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{COMPLETE_MARKER} cannot be read: {error}"
    if missing:
        return f"missing {', '.join(missing[:3])}"
    return f"not of the size that was written: {', '.join(cut[:3])}" if cut else None


def is_complete(folder: Path) -> bool:
    return why_incomplete(folder) is None


def latest_complete(run: Path) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    """The complete checkpoint of the highest step, and the incomplete ones of higher steps."""
    skipped: list[IncompleteCheckpoint] = []
    for folder in reversed(list_checkpoints(run)):
        why = why_incomplete(folder)
        if why is None:
            return folder, skipped
        skipped.append(IncompleteCheckpoint(folder, why))
    return None, skipped


def list_checkpoints(run: Path) -> list[Path]:
    """All folders named `checkpoint-<step>`, complete or not, by step."""
    found = run.iterdir() if run.is_dir() else []
    return sorted((folder for folder in found if folder.is_dir() and _NAME.fullmatch(folder.name)), key=step_of)


def step_of(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    if found is None:
        raise ValueError(f"{folder} is not a checkpoint: expected a folder named checkpoint-<step>")
    return int(found[1])


def prune(run: Path, keep: int | None = None, best: Path | None = None) -> None:
    """Removes what interrupted writing left, and all but the newest `keep` complete checkpoints. The best one is kept
    in addition; None keeps all."""
    for replaced in run.glob(f".checkpoint-*{_REPLACED}"):
        restore_replaced(run / replaced.name.removeprefix(".").removesuffix(_REPLACED))
    for suffix in (_UNFINISHED, _REPLACED, _DISCARDED):
        for leftover in run.glob(f".checkpoint-*{suffix}"):
            shutil.rmtree(leftover, ignore_errors=True)
    if keep is None:
        return
    complete = [folder for folder in list_checkpoints(run) if is_complete(folder)]
    for folder in complete[:-keep]:
        if best is None or folder.name != best.name:
            _discard(folder)


def _discard(folder: Path) -> None:
    """Renames first: a kill while files are removed leaves no incomplete checkpoint under its name."""
    hidden = folder.with_name(f".{folder.name}{_DISCARDED}")
    try:
        os.replace(folder, hidden)
    except OSError:
        return  # it is removed another time
    shutil.rmtree(hidden, ignore_errors=True)
