"""What is needed to know a run later: the recipe with every default written out, the versions it ran with, and which
base model it began from."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache, wraps
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from safetensors import SafetensorError
from torch.serialization import get_unsafe_globals_in_checkpoint

from ..checkpoints import (
    COMPLETE_MARKER,
    IncompleteCheckpoint,
    commit_checkpoint,
    latest_complete,
    prune,
    step_of,
    why_incomplete,
    write_reducers,
)
from ..checkpoints.atomic import draft_folder
from ..common.distributed import RankInfo
from ..config import Recipe
from .deepspeed_config import deepspeed_config, stage_of

# A checkpoint of the Trainer made whole: what it leaves out beside it, sealed, and the old ones swept away.

log = logging.getLogger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written, and the recipe says to stop then."""

    def __str__(self) -> str:
        return str(self.args[1])


class CheckpointWriter:
    """`writing` is the folder under another name while a checkpoint is being written, else None."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.writing: Path | None = None
        self.errors: list[str] = []

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """`write` is the Trainer's own saving, called on every rank."""
        step = trainer.state.global_step
        self.writing = draft_folder(self.run, step)
        try:
            failed = self._attempt(trainer, write)
            if failed is not None and trainer.args.should_save:
                shutil.rmtree(self.writing, ignore_errors=True)  # on a full disk half a checkpoint is in the way
        finally:
            self.writing = None
        if failed is not None:
            self._tell(failed, step)

    def _attempt(self, trainer: Any, write: Callable[[], None]) -> str | None:
        """What went wrong on any rank. Every rank learns it, so that all go on or all stop."""
        first = trainer.args.should_save
        for act, here in ((self._begin, first), (self._write, True), (self._finish, first)):
            self.errors = []
            if here:
                self.later(lambda act=act: act(trainer, write))  # type: ignore[misc]
            error = _agree(self.errors[0] if self.errors else None)
            if error is not None:
                return error
        return None

    def _begin(self, trainer: Any, write: Callable[[], None]) -> None:
        assert self.writing is not None
        if self.writing.exists():
            shutil.rmtree(self.writing)
        (self.writing / f"checkpoint-{trainer.state.global_step}").mkdir(parents=True)

    def _write(self, trainer: Any, write: Callable[[], None]) -> None:
        write()

    def later(self, act: Callable[[], Any]) -> None:
        """Writes; what fails is told when every rank is done. A rank that left in the middle would be waited for."""
        try:
            act()
        except (OSError, RuntimeError, SafetensorError) as error:  # each tells of a full disk in its own way
            self.errors.append(f"{type(error).__name__}: {error}{_room(self.run)}")

    def soften(self, engine: Any) -> None:
        """The same for what DeepSpeed writes: on each rank, between steps that all ranks do together."""
        disk, save, copy = engine.checkpoint_engine, engine.save_checkpoint, engine._copy_recovery_script
        write = disk.save

        @wraps(save)
        def saved(folder: str, **named: Any) -> None:
            tag = f"global_step{engine.global_steps}"
            save(folder, **{**named, "tag": tag, "save_latest": False})
            if engine.global_rank == 0:
                self.later(lambda: (Path(folder) / "latest").write_text(tag, encoding="utf-8"))

        disk.save = lambda state_dict, path: self.later(lambda: write(state_dict, path))
        engine._copy_recovery_script = lambda folder: self.later(lambda: copy(folder))
        engine.save_checkpoint = saved

    def _finish(self, trainer: Any, write: Callable[[], None]) -> None:
        assert self.writing is not None
        step = trainer.state.global_step
        made, target = self.writing / f"checkpoint-{step}", self.run / f"checkpoint-{step}"
        best = self._best(trainer)
        if best is not None:
            trainer.state.best_model_checkpoint = str(best)
            trainer.state.save_to_json(str(made / "trainer_state.json"))
        (made / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says it all
        write_reducers(made, self.recipe.reduction.reducers())
        write_record(made, self.recipe)
        commit_checkpoint(made, target, {"step": step, **spread(self.recipe, trainer.feed.ranks)})
        self.writing.rmdir()
        prune(self.run, self.recipe.train.save_total_limit, best)

    def _best(self, trainer: Any) -> Path | None:
        step = trainer.state.best_global_step
        return self.run / f"checkpoint-{step}" if step else None

    def _tell(self, error: str, step: int) -> None:
        what = f"the checkpoint of step {step} could not be written: {error}; earlier ones are untouched"
        if self.recipe.train.on_save_error == "stop":
            raise CheckpointWriteError(errno.EIO, f"{what} (train.on_save_error: continue would go on without it)")
        log.warning("%s; going on, as train.on_save_error says", what)

    def restore(self, model: Any, folder: Path) -> bool:
        """Full weights back into the model, True; an adapter's is left to the Trainer, False."""
        if hasattr(model, "peft_config") or not (folder / "config.json").is_file():
            return False
        saved = type(model).from_pretrained(folder, dtype="auto", trust_remote_code=False)
        model.load_state_dict(saved.state_dict())
        return True


def _room(run: Path) -> str:
    """How much the disk would still take: torch's own words for a full one do not say so."""
    try:
        return f" ({shutil.disk_usage(run).free / 2**20:,.1f} MiB are free there)"
    except OSError:
        return ""


def _agree(error: str | None) -> str | None:
    """The first rank's error of all ranks'."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return error
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next((f"rank {rank}: {each}" for rank, each in enumerate(errors) if each), None)


# Where a run starts: at the beginning, or behind the newest whole checkpoint of its folder.

log = logging.getLogger(__name__)


def start_from(recipe: Recipe, ranks: RankInfo, force: bool = False) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    """The checkpoint to go on from, None for a fresh start, and those that were passed over. `force`: what is
    otherwise than it was when the checkpoint was written is told and accepted."""
    found, passed = _choose(recipe)
    if found is not None:
        if ranks.rank == 0:
            scan_pickles(found)
        _check_spread(found, recipe, ranks)
        for changed in check_unchanged(found, recipe, force):
            if ranks.rank == 0:
                log.warning("going on from %s, though otherwise: %s", found.name, changed)
    return found, passed


def _choose(recipe: Recipe) -> tuple[Path | None, list[IncompleteCheckpoint]]:
    run, resume = Path(recipe.train.output_dir), recipe.train.resume
    if resume == "auto":
        return latest_complete(run)
    if resume == "never":
        found, _ = latest_complete(run)
        if found is not None:
            raise ValueError(
                f"train.resume: never, but {run} holds {found.name}, which would be overwritten; "
                "choose another train.output_dir, or resume: auto"
            )
        return None, []
    folder = Path(resume)
    why = why_incomplete(folder) if folder.is_dir() else "there is no such folder"
    if why is not None:
        raise ValueError(f"train.resume: {resume} cannot be resumed from: {why}")
    step_of(folder)
    return folder, []


def _check_spread(folder: Path, recipe: Recipe, ranks: RankInfo) -> None:
    """The optimizer's state lies in pieces that fit one number of ranks and one stage."""
    mark = json.loads((folder / COMPLETE_MARKER).read_text(encoding="utf-8"))
    here = spread(recipe, ranks)
    differs = [f"{name} {mark[name]}, here {here[name]}" for name in here if mark.get(name, here[name]) != here[name]]
    if differs:
        raise ValueError(
            f"{folder} was written with {' and '.join(differs)}; the optimizer's state lies in pieces that fit only "
            "that. Start as it was started, or begin a new run from its weights: "
            f"python -m dart_train export {folder} --out FOLDER, then model.path=FOLDER and another "
            "train.output_dir. Nothing was touched"
        )


def spread(recipe: Recipe, ranks: RankInfo) -> dict[str, int | None]:
    """How the state of a run is spread; stage None: without DeepSpeed, where it is whole."""
    deepspeed = ranks.uses_deepspeed(recipe.train.zero_stage, recipe.train.requires_deepspeed)
    return {"ranks": ranks.world, "stage": stage_of(deepspeed_config(recipe.train)) if deepspeed else None}


# What is otherwise than when the checkpoint was written: a run that goes on must be the run that began.

# What may change: none of it touches which rows are learnt from, or how.
FREE = (
    "compare", "log", "data.validation", "data.workers", "data.allow_urls", "data.on_bad_row",
    "data.max_bad_fraction", "model.path", "model.revision", "train.output_dir", "train.epochs", "train.max_steps",
    "train.per_device_eval_batch_size", "train.gradient_checkpointing", "train.save_steps", "train.save_total_limit",
    "train.eval_steps", "train.eval_budgets", "train.resume", "train.logging_steps", "train.overlay_steps",
    "train.on_nan", "train.on_save_error", "train.timeout_seconds",
)  # fmt: skip


def check_unchanged(checkpoint: Path, recipe: Recipe, force: bool) -> list[str]:
    """The differences. Raises ValueError where there are some and `force` does not say to go on."""
    found = [*_recipe(checkpoint, recipe), *_base(checkpoint, recipe), *_versions(checkpoint)]
    if found and not force:
        told = "\n".join(f"  {each}" for each in found)
        raise ValueError(
            f"{checkpoint} was written otherwise:\n{told}\nGo back to that, choose another train.output_dir, or go "
            "on with these differences: --force. Nothing was touched"
        )
    return found


def _recipe(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    # Through YAML, as it was written: a tuple is a list there.
    yield from _differences(_read(checkpoint / RECIPE), yaml.safe_load(recipe.to_yaml()), "")


def _differences(then: Any, now: Any, path: str) -> Iterator[str]:
    if path in FREE or then == now:
        return
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*then, *now]):
            # A key that the older recipe did not know had its default then, as it has where it is not given.
            if key in then and key in now:
                yield from _differences(then[key], now[key], f"{path}.{key}" if path else str(key))
        return
    yield f"{path}: {then!r} then, {now!r} now"


def _base(checkpoint: Path, recipe: Recipe) -> Iterator[str]:
    then, now = _read(checkpoint / BASE).get("model"), base_of(recipe)["model"]
    if then is not None and then != now:
        yield f"model.path: another base model, {recipe.model.path} ({then} then, {now} now)"


def _versions(checkpoint: Path) -> Iterator[str]:
    then, now = _read(checkpoint / VERSIONS), versions()
    yield from (f"{name}: {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name])


def _read(file: Path) -> dict[str, Any]:
    """Nothing where nothing was written down."""
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


# Which base model a run began from, told by its files and not by its path: folders are moved.

_BLOCK, _BLOCKS = 65536, 16
_WEIGHTS = (".safetensors", ".bin")


def base_of(recipe: Recipe) -> dict[str, str]:
    """What the base model is, wherever it lies."""
    folder = Path(recipe.model.path)
    if not folder.is_dir():
        return {"model": f"{recipe.model.path}@{recipe.model.revision or 'newest'}"}
    return {"model": fingerprint(folder)}


@cache
def fingerprint(folder: Path) -> str:
    """Of a model's folder: its configuration whole; of weights, sizes and blocks from all over each file."""
    told = hashlib.sha256()
    config = folder / "config.json"
    told.update(config.read_bytes() if config.is_file() else b"")
    for file in sorted(each for each in folder.iterdir() if each.suffix in _WEIGHTS):
        size = file.stat().st_size
        told.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({size * i // _BLOCKS for i in range(_BLOCKS)} | {max(0, size - _BLOCK)}):
                content.seek(start)
                told.update(content.read(_BLOCK))
    return told.hexdigest()[:16]


# What a checkpoint may hold. DeepSpeed's own loading unpickles whatever a file says, and a pickle can run anything:
# so the files are looked through before, without being loaded, for what does not belong into them.

_PICKLED = {".pt", ".pth", ".bin"}
# Beside tensors and plain Python, which torch itself knows to be harmless. All of it holds numbers and names.
_KNOWN = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}


def scan_pickles(checkpoint: Path) -> None:
    """Raises ValueError, and has run nothing of it."""
    for file in sorted(each for each in checkpoint.rglob("*") if each.suffix in _PICKLED and each.is_file()):
        try:
            strangers = set(get_unsafe_globals_in_checkpoint(file)) - _KNOWN
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{file} is no file that torch saved, and is not opened: {error}") from error
        if strangers:
            raise ValueError(
                f"{file} would run code when it is loaded: {', '.join(sorted(strangers))}. This run has not written "
                "that; go on only from checkpoints of your own"
            )


PACKAGES = ("dart-train", "torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "safetensors")
RECIPE, VERSIONS, BASE = "recipe.yaml", "versions.json", "base.json"


def write_record(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / VERSIONS).write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")
    (folder / BASE).write_text(json.dumps(base_of(recipe), indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
