"""A checkpoint of the Trainer made whole: what it leaves out beside it, sealed, and the old ones swept away."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from ..checkpoint import seal, sweep, write_reducers
from ..checkpoint.seal import unfinished
from ..recipe import Recipe
from .record import write_record
from .resume import spread

log = logging.getLogger(__name__)


class NotSaved(OSError):
    """A checkpoint could not be written, and the recipe says to stop then."""

    def __str__(self) -> str:
        return str(self.args[1])


class Saver:
    """`writing` is the folder under another name while a checkpoint is being written, else None."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.writing: Path | None = None
        self.errors: list[str] = []

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """`write` is the Trainer's own saving, called on every rank."""
        step = trainer.state.global_step
        self.writing = unfinished(self.run, step)
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
        seal(made, target, {"step": step, **spread(self.recipe, trainer.feed.ranks)})
        self.writing.rmdir()
        sweep(self.run, self.recipe.train.save_total_limit, best)

    def _best(self, trainer: Any) -> Path | None:
        step = trainer.state.best_global_step
        return self.run / f"checkpoint-{step}" if step else None

    def _tell(self, error: str, step: int) -> None:
        what = f"the checkpoint of step {step} could not be written: {error}; earlier ones are untouched"
        if self.recipe.train.on_save_error == "stop":
            raise NotSaved(errno.EIO, f"{what} (train.on_save_error: continue would go on without it)")
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
