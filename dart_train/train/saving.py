"""A checkpoint of the Trainer made whole: what it leaves out beside it, sealed, and the old ones swept away."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ..checkpoint import seal, sweep, write_reducers
from ..checkpoint.seal import unfinished
from ..recipe import Recipe
from .record import write_record
from .resume import spread

log = logging.getLogger(__name__)


class Saver:
    """`writing` is the folder under another name while a checkpoint is being written, else None."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.writing: Path | None = None

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """`write` is the Trainer's own saving, called on every rank."""
        step = trainer.state.global_step
        self.writing = unfinished(self.run, step)
        try:
            failed = self._attempt(trainer, write)
        finally:
            self.writing = None
        if failed is not None:
            self._tell(failed, step)

    def _attempt(self, trainer: Any, write: Callable[[], None]) -> str | None:
        """What went wrong on any rank. Every rank learns it, so that all go on or all stop."""
        error = _agree(_error_of(lambda: self._write(trainer, write)))
        if error is None:
            error = _agree(_error_of(lambda: self._finish(trainer)) if trainer.args.should_save else None)
        return error

    def _write(self, trainer: Any, write: Callable[[], None]) -> None:
        assert self.writing is not None
        if trainer.args.should_save and self.writing.exists():
            shutil.rmtree(self.writing)
        _wait()
        write()

    def _finish(self, trainer: Any) -> None:
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
            raise OSError(errno.EIO, f"{what} (train.on_save_error: continue would go on without it)")
        log.warning("%s; going on, as train.on_save_error says", what)

    def restore(self, model: Any, folder: Path) -> bool:
        """Full weights back into the model, True; an adapter's is left to the Trainer, False."""
        if hasattr(model, "peft_config") or not (folder / "config.json").is_file():
            return False
        saved = type(model).from_pretrained(folder, dtype="auto", trust_remote_code=False)
        model.load_state_dict(saved.state_dict())
        return True


def _error_of(act: Callable[[], None]) -> str | None:
    try:
        act()
    except (OSError, RuntimeError) as error:  # torch and safetensors tell of a full disk in a RuntimeError
        return f"{type(error).__name__}: {error}"
    return None


def _agree(error: str | None) -> str | None:
    """The first rank's error of all ranks'."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return error
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next((f"rank {rank}: {each}" for rank, each in enumerate(errors) if each), None)


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
