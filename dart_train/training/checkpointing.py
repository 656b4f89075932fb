"""Writing a checkpoint: what the Trainer saves, the reduction and the record of the run, committed in one step; and
what happens when it cannot be written, on one rank or on all."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..checkpoints import TrainedBudgets, commit_checkpoint, prune, write_reducers
from ..checkpoints.atomic import draft_folder
from ..checkpoints.scorer_file import SCORER_FILE
from ..common.distributed import RankInfo
from ..config import Recipe
from ..models.structure import SCORERS, unwrap_model
from .deepspeed_config import optimizer_sharding
from .run_record import write_run_record

log = logging.getLogger(__name__)


class CheckpointWriteError(OSError):
    """A checkpoint could not be written, and train.on_save_error is stop."""

    def __str__(self) -> str:
        return str(self.args[1])


class CheckpointWriter:
    """`draft`: the folder that is being written, under its temporary name; None between checkpoints. `rows`: as
    `TrainFeed.fingerprint` returns it."""

    def __init__(self, recipe: Recipe, ranks: RankInfo, run: Path, rows: dict[str, Any]) -> None:
        self.recipe, self.ranks, self.run, self.rows = recipe, ranks, run, rows
        self.draft: Path | None = None
        self.errors: list[str] = []

    def save(self, trainer: Any, write: Callable[[], None]) -> None:
        """Collective. `write` is the Trainer's own saving, called on every rank."""
        step, first = trainer.state.global_step, trainer.args.should_save
        self.draft = draft_folder(self.run, step)
        try:
            error = self._write_on_all_ranks(trainer, write)
            if error is not None and first:
                shutil.rmtree(self.draft, ignore_errors=True)  # it would take room on a full disk
        finally:
            self.draft = None
        if error is not None:
            self._handle_failure(error, step)

    def _write_on_all_ranks(self, trainer: Any, write: Callable[[], None]) -> str | None:
        """The error of any rank. Every rank learns of it after each phase, so that all continue or all stop."""
        first = trainer.args.should_save
        phases = (
            (first, lambda: self._make_draft(trainer.state.global_step)),
            (True, write),
            (first, lambda: self._commit(trainer)),
        )
        for takes_part, phase in phases:
            self.errors = []
            if takes_part:
                self.run_and_collect(phase)
            error = _first_error_of_any_rank(self.errors[0] if self.errors else None)
            if error is not None:
                return error
        return None

    def run_and_collect(self, action: Callable[[], Any]) -> None:
        """Writes something; a failure is kept until every rank is done. A rank that raised in the middle would keep
        the others waiting."""
        try:
            action()
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk in its own way
            self.errors.append(f"{type(error).__name__}: {error}{_free_space_note(self.run)}")

    def _make_draft(self, step: int) -> None:
        assert self.draft is not None
        if self.draft.exists():
            shutil.rmtree(self.draft)
        (self.draft / f"checkpoint-{step}").mkdir(parents=True)

    def _commit(self, trainer: Any) -> None:
        """On the first rank, once all ranks have written."""
        assert self.draft is not None
        step, best_step = trainer.state.global_step, trainer.state.best_global_step
        folder, target = self.draft / f"checkpoint-{step}", self.run / f"checkpoint-{step}"
        best = self.run / f"checkpoint-{best_step}" if best_step else None
        if best is not None:  # the Trainer wrote a path inside the draft folder, or none
            trainer.state.best_model_checkpoint = str(best)
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml has all of it
        budgets = TrainedBudgets.of(self.recipe.to_dict()["reduction"])
        reduction = self.recipe.reduction
        write_reducers(folder, reduction.reducers(), budgets=budgets, tower=reduction.tower_stage())
        write_run_record(folder, self.recipe, self.rows)
        commit_checkpoint(folder, target, {"step": step, **optimizer_sharding(self.recipe.train, self.ranks)})
        self.draft.rmdir()
        prune(self.run, self.recipe.train.save_total_limit, best)

    def _handle_failure(self, error: str, step: int) -> None:
        message = f"the checkpoint of step {step} could not be written: {error}; earlier checkpoints are unchanged"
        if self.recipe.train.on_save_error == "stop":
            raise CheckpointWriteError(errno.EIO, f"{message} (to continue without it: train.on_save_error: continue)")
        log.warning("%s; continuing, because train.on_save_error is continue", message)

    def restore(self, model: Any, folder: Path) -> bool:
        """Loads full weights into the model and returns True; returns False for an adapter, which the Trainer loads."""
        if (folder / SCORER_FILE).is_file():
            getattr(unwrap_model(model), SCORERS).load_state_dict(load_file(folder / SCORER_FILE))
        if hasattr(model, "peft_config") or not (folder / "config.json").is_file():
            return False
        saved = type(model).from_pretrained(folder, dtype="auto", trust_remote_code=False)
        missing = model.load_state_dict(saved.state_dict(), strict=False).missing_keys
        if lost := [name for name in missing if not name.startswith(SCORERS)]:
            raise ValueError(f"{folder} lacks weights of the model: {', '.join(lost[:5])}")
        return True


def _free_space_note(run: Path) -> str:
    """PyTorch's own message for a full disk does not mention the disk."""
    try:
        return f" ({shutil.disk_usage(run).free / 2**20:,.1f} MiB free on that disk)"
    except OSError:
        return ""


def _first_error_of_any_rank(error: str | None) -> str | None:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return error
    errors: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next((f"rank {rank}: {each}" for rank, each in enumerate(errors) if each), None)
