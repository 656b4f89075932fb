"""Where an export comes to lie: written beside its place under another name, renamed when it is proven."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint import Found
from ..checkpoint.known import NAME as PROVENANCE
from ..checkpoint.seal import flush

_GIB = 1024**3


def check_out(out: Path, run: Path, force: bool) -> None:
    """Nothing of the user's is ever overwritten: with `force`, only an export gives way to an export."""
    here, source = out.resolve(), run.resolve()
    if run.exists() and (here == source or here in source.parents):
        raise ValueError(f"--out {out} would replace what is exported; choose another folder")
    if out.is_file():
        raise ValueError(f"--out {out} is a file; give the folder to make")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / PROVENANCE).is_file():
        raise ValueError(f"--out {out} holds something that is no export, which is not replaced; choose another folder")
    if not force:
        raise ValueError(f"--out {out} holds an export already; choose another folder, or --force to replace it")


def check_room(out: Path, found: Found) -> None:
    """As much room as the base model and the checkpoint take is enough, and a lower bound is told."""
    sources = {Path(found.source.path), found.place.folder}
    needed = sum(file.stat().st_size for folder in sources for file in folder.glob("*.safetensors"))
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise ValueError(f"--out {out}: needs about {needed / _GIB:.1f} GiB, {free / _GIB:.1f} are free there")


@contextmanager
def unfinished(out: Path) -> Iterator[Path]:
    """An empty folder to write in, gone afterwards unless `finished`. What a killed export left is swept first."""
    folder, replaced = out.parent / f".{out.name}.unfinished", _replaced(out)
    if replaced.exists() and not out.exists():
        os.replace(replaced, out)  # the machine stopped between the two renames of `finished`
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def finished(folder: Path, out: Path) -> None:
    """To the disk, then to its name in one step."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)
    replaced = _replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.replace(out, replaced)
    os.replace(folder, out)
    flush(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(out: Path) -> Path:
    """What makes room for another export."""
    return out.parent / f".{out.name}.replaced"
