"""From a run to a folder that needs neither the run nor dart_train: written under a temporary name, verified in a fresh
process, then renamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..checkpoints import CheckpointSelector, ResolvedModel, resolve, write_reducers
from ..checkpoints.atomic import replace_folder, restore_replaced
from ..checkpoints.locate import ADAPTER
from ..checkpoints.provenance import PROVENANCE_FILE, write_provenance
from ..checkpoints.scorer_file import SCORER_FILE
from ..common.io import ProblemCollector, fsync_path
from ..models.loading import read_model
from ..models.peft_compat import merge_adapter
from ..reduction import Reducer
from ..reduction.reducer_file import read_reducer_file
from .engine_names import index_weights, rename_for_engines
from .engines import append_serving_section, stages_for_engine
from .model_card import collect_provenance, write_card
from .verify import ReferenceRun, run_reference, verify_export

DTYPES = ("float32", "bfloat16", "float16")
_ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors")
_GIB = 1024**3


@dataclass
class ExportJob:
    """`folder` is written and verified, then renamed to `out`."""

    found: ResolvedModel
    folder: Path
    out: Path
    dtype: torch.dtype | str
    adapter_only: bool
    engine: str | None = None
    stages: list[Reducer] | None = None  # for the engine, in place of those of the training


def export_model(
    run: str | Path,
    out: str | Path,
    checkpoint: CheckpointSelector,
    adapter_only: bool,
    force: bool,
    dtype: str | None,
    base: str | Path | None,
    engine: str | None,
    convert: bool,
) -> Path:
    """See `exporting.export`. Raises ValueError before a weight is read, RuntimeError if the check fails; in both
    cases nothing is left at `out`, and an earlier export there is kept."""
    out = Path(out)
    found = _resolve(run, out, checkpoint, adapter_only, force, dtype, base)
    if convert and engine is None:
        raise ValueError("convert changes the reduction to one that an engine can apply: name the engine (--for vllm)")
    stages = None if engine is None else stages_for_engine(engine, found, adapter_only, convert)
    with _draft_folder(out) as folder:
        job = ExportJob(found, folder, out, dtype or found.dtype, adapter_only, engine, stages)
        with _progress(("read the weights", "write", "verify in a fresh process")) as begin:
            begin("read the weights")
            model = read_model(found.source, job.dtype, found.attn_implementation, merge=False)
            reference = run_reference(model, found.processor)
            begin("write")
            _write_weights(job, model, reference)
            _write_metadata(job)
            del model  # makes room for the fresh process
            begin("verify in a fresh process")
            difference = verify_export(folder, found, reference, job.dtype, adapter_only)
        for path in [*folder.rglob("*"), folder]:
            fsync_path(path)
        replace_folder(folder, out)
    print(
        f"export: wrote {out}; in a fresh process its logits are those of the run, with a difference of "
        f"{difference:.2g} of their standard deviation"
    )
    return out


def _resolve(
    run: str | Path,
    out: Path,
    checkpoint: CheckpointSelector,
    adapter_only: bool,
    force: bool,
    dtype: str | None,
    base: str | Path | None,
) -> ResolvedModel:
    """Raises ValueError with everything that is wrong."""
    problems = ProblemCollector()
    problems.collect(lambda: check_out(out, Path(run), force))
    if dtype is not None and dtype not in DTYPES:
        problems.add([f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}"])
    elif dtype is not None and adapter_only:
        problems.add([f"dtype={dtype!r}: an adapter is exported as it was saved; leave it out"])
    found = problems.collect(lambda: resolve(run, checkpoint=checkpoint, base=base))
    if found is not None and adapter_only and not found.location.is_adapter:
        problems.add([f"{run}: full weights were trained, so there is no adapter; leave out --adapter-only"])
    if found is not None:
        problems.collect(lambda: check_free_space(out, found))
    if found is None or problems.problems:
        raise ValueError("\n".join(problems.problems))
    return found


def check_out(out: Path, run: Path, force: bool) -> None:
    """Nothing of the user's is overwritten: with `force` an export replaces an export, and nothing else."""
    target, source = out.resolve(), run.resolve()
    if run.exists() and (target == source or target in source.parents):
        raise ValueError(f"--out {out} would replace the model that is exported; choose another folder")
    if out.is_file():
        raise ValueError(f"--out {out} is a file; give the folder to write")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / PROVENANCE_FILE).is_file():
        raise ValueError(
            f"--out {out} holds something that is not an export and is not replaced; choose another folder"
        )
    if not force:
        raise ValueError(f"--out {out} holds an export already; choose another folder, or --force to replace it")


def check_free_space(out: Path, found: ResolvedModel) -> None:
    """An export is about as large as the base model and the checkpoint together."""
    sources = {Path(found.source.path), found.location.folder}
    needed = sum(file.stat().st_size for folder in sources for file in folder.glob("*.safetensors"))
    parent = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ValueError(f"--out {out}: needs about {needed / _GIB:.1f} GiB, {free / _GIB:.1f} GiB are free there")


@contextmanager
def _draft_folder(out: Path) -> Iterator[Path]:
    """An empty folder to write in; if it has not been renamed, it is removed. What a killed export left is removed
    first."""
    folder = out.parent / f".{out.name}.unfinished"
    restore_replaced(out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_weights(job: ExportJob, model: Any, reference: ReferenceRun) -> None:
    """Full weights, with the adapter merged; or the adapter's files as they are."""
    location = job.found.location
    if job.adapter_only:
        for name in _ADAPTER_FILES:
            shutil.copy(location.folder / name, job.folder / name)
    else:
        full = merge_adapter(model) if location.is_adapter else model
        reference.record_weights(full)
        full.save_pretrained(job.folder)
        rename_for_engines(job.folder)


def _write_metadata(job: ExportJob) -> None:
    """Processor, reduction, recipe, provenance and model card."""
    found, folder = job.found, job.folder
    found.processor.save_pretrained(folder)
    if found.trained is not None:
        saved = read_reducer_file(found.location.folder)
        assert saved is not None
        stages, trained, calibration = found.trained, saved.trained_stages, saved.calibration
        if job.stages is not None and list(stages) != job.stages:  # converted for the engine
            stages, trained, calibration = job.stages, trained or tuple(found.trained), None
        write_reducers(folder, stages, trained, found.provenance.budgets, calibration, saved.tower)
    if (found.location.folder / SCORER_FILE).is_file():
        shutil.copy(found.location.folder / SCORER_FILE, folder / SCORER_FILE)
        index_weights(folder)
    recipe = found.location.folder / "recipe.yaml"
    if recipe.is_file():
        shutil.copy(recipe, folder / recipe.name)
    provenance = collect_provenance(found)
    write_provenance(folder, provenance)
    write_card(folder, provenance, found, job.out.name, job.adapter_only)
    if job.engine is not None:
        stages = job.stages or []
        as_trained = list(found.trained or []) == stages
        append_serving_section(folder / "README.md", job.out.name, job.adapter_only, stages, as_trained)


@contextmanager
def _progress(steps: tuple[str, ...]) -> Iterator[Callable[[str], None]]:
    """A progress bar; calling what it yields begins the step of that name."""
    with tqdm(total=len(steps), desc="export", bar_format="{desc} {bar} {n}/{total} {elapsed} {postfix}") as bar:

        def begin(name: str) -> None:
            bar.update(steps.index(name) - bar.n)
            bar.set_postfix_str(name)

        yield begin
        bar.update(bar.total - bar.n)
