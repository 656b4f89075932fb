"""From a run to a folder that needs neither the run nor this package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints import ResolvedModel, resolve, write_reducers
from ..checkpoints.locate import ADAPTER, CheckpointSelector
from ..checkpoints.provenance import PROVENANCE_FILE as PROVENANCE
from ..checkpoints.provenance import Provenance, write_provenance
from ..common.io import ProblemCollector, fsync_path
from ..models.loading import merged, read_model
from .model_card import all_known, write_card
from .verify import Expected, expect, prove

# Where an export comes to lie: written beside its place under another name, renamed when it is proven.

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


def check_room(out: Path, found: ResolvedModel) -> None:
    """As much room as the base model and the checkpoint take is enough, and a lower bound is told."""
    sources = {Path(found.source.path), found.location.folder}
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
        fsync_path(path)
    replaced = _replaced(out)
    shutil.rmtree(replaced, ignore_errors=True)
    if out.exists():
        os.replace(out, replaced)
    os.replace(folder, out)
    fsync_path(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _replaced(out: Path) -> Path:
    """What makes room for another export."""
    return out.parent / f".{out.name}.replaced"


DTYPES = ("float32", "bfloat16", "float16")
_ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors")


@dataclass
class Work:
    """One export under way: `folder` is written, then proven, then renamed to `out`."""

    found: ResolvedModel
    folder: Path
    out: Path
    dtype: torch.dtype | str
    adapter_only: bool


def take_away(
    run: str | Path,
    out: str | Path,
    which: CheckpointSelector,
    adapter_only: bool,
    force: bool,
    dtype: str | None,
    base: Any,
) -> Path:
    out = Path(out)
    found = _found(run, out, which, adapter_only, force, dtype, base)
    with unfinished(out) as folder:
        work = Work(found, folder, out, dtype or found.dtype, adapter_only)
        with _steps(("read the weights", "write", "prove it in a fresh process")) as step:
            step("read the weights")
            model = read_model(found.source, work.dtype, found.attn_implementation, merge=False)
            expected = expect(model, found.processor)
            step("write")
            _write(work, model, expected)
            del model  # the fresh process needs the room
            step("prove it in a fresh process")
            difference = prove(folder, found, expected, work.dtype, adapter_only)
        finished(folder, out)
    print(f"export: {out} is done; a fresh process gave the run's logits, off by {difference:.2g} of their spread")
    return out


def _found(
    run: str | Path, out: Path, which: CheckpointSelector, adapter_only: bool, force: bool, dtype: str | None, base: Any
) -> ResolvedModel:
    """Raises ValueError with all that is wrong, before a weight is read."""
    problems = ProblemCollector()
    problems.collect(lambda: check_out(out, Path(run), force))
    problems.collect(lambda: _check_dtype(dtype, adapter_only))
    found = problems.collect(lambda: resolve(run, checkpoint=which, base=base))
    if found is not None and adapter_only and not found.location.is_adapter:
        problems.add([f"{run}: full weights were trained, there is no adapter to take away; leave --adapter-only out"])
    if found is not None:
        problems.collect(lambda: check_room(out, found))
    if found is None or problems.problems:
        raise ValueError("\n".join(problems.problems))
    return found


def _check_dtype(dtype: str | None, adapter_only: bool) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if dtype is not None and adapter_only:
        raise ValueError(f"dtype={dtype!r}: an adapter is taken away as it was saved; leave it out")


def _write(work: Work, model: Any, expected: Expected) -> None:
    if work.adapter_only:
        _copy_adapter(work)
    else:
        plain = merged(model) if work.found.location.is_adapter else model
        expected.remember(plain)
        plain.save_pretrained(work.folder)
    _write_beside(work)


def _copy_adapter(work: Work) -> None:
    for name in _ADAPTER_FILES:
        shutil.copy(work.found.location.folder / name, work.folder / name)


def _write_beside(work: Work) -> None:
    """Processor, reduction, provenance and model card."""
    found, folder = work.found, work.folder
    found.processor.save_pretrained(folder)
    if found.trained is not None:
        write_reducers(folder, found.trained)
    recipe = found.location.folder / "recipe.yaml"
    if recipe.is_file():
        shutil.copy(recipe, folder / recipe.name)
    known: Provenance = all_known(found)
    write_provenance(folder, known)
    write_card(folder, known, found, work.out.name, work.adapter_only)


@contextmanager
def _steps(names: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """A bar over what an export does; a call begins the step of that name."""
    with tqdm(total=len(names), desc="export", bar_format="{desc} {bar} {n}/{total} {elapsed} {postfix}") as bar:

        def begin(name: str) -> None:
            bar.update(names.index(name) - bar.n)
            bar.set_postfix_str(name)

        yield begin
        bar.update(bar.total - bar.n)
