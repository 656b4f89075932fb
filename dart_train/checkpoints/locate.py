"""From a path to the folder of a model: an exported folder, a run, one of its checkpoints, a plain model folder, or a
hub id."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..common.hub import hub_answers, offline, require_hub
from .atomic import COMPLETE_MARKER, latest_complete, list_checkpoints, step_of, why_incomplete

ADAPTER, CONFIG, REDUCER = "adapter_config.json", "config.json", "reducer.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.yaml", "*.py"]  # all of a hub repository but its weights
# A step, "newest" or "best"; None: the best checkpoint if the run was validated, else the newest.
CheckpointSelector = int | str | None


@dataclass(frozen=True)
class ModelLocation:
    """folder: the files next to the weights. source: what `from_pretrained` takes. run: the run it belongs to."""

    folder: Path
    source: str
    revision: str | None = None
    run: Path | None = None

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds an adapter, which needs its base model."""
        return (self.folder / ADAPTER).is_file()

    @property
    def step(self) -> int | None:
        """The optimizer step of a run's checkpoint."""
        try:
            return int(json.loads((self.folder / COMPLETE_MARKER).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def locate(path: str | Path, checkpoint: CheckpointSelector = None, revision: str | None = None) -> ModelLocation:
    """Raises ValueError where there is no complete model at `path`."""
    folder = Path(path)
    if not folder.is_dir():
        return _from_hub(str(path), revision)
    if list_checkpoints(folder) or _looks_like_a_run(folder):
        return _from_run(folder, checkpoint)
    if checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint!r} was given, but {folder} is not the folder of a run; leave it out")
    return _from_folder(folder, folder.parent if (folder / COMPLETE_MARKER).is_file() else None)


def _from_folder(folder: Path, run: Path | None) -> ModelLocation:
    named_as_one = re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / "trainer_state.json").is_file()
    if (folder / COMPLETE_MARKER).is_file() or (named_as_one and (folder / REDUCER).is_file()):
        why = why_incomplete(folder)
        if why is not None:
            raise ValueError(f"{folder} is not a complete checkpoint: {why}; choose another checkpoint of its run")
    if not any((folder / name).is_file() for name in (ADAPTER, CONFIG)):
        raise ValueError(
            f"{folder} holds no model: neither {CONFIG} nor {ADAPTER} is in it; give an exported folder, a run, "
            "a checkpoint of a run, or the folder of a model"
        )
    return ModelLocation(folder, str(folder), run=run)


def _looks_like_a_run(folder: Path) -> bool:
    no_model = not any((folder / name).is_file() for name in (CONFIG, ADAPTER, COMPLETE_MARKER))
    return no_model and (folder / "recipe.yaml").is_file()


def _from_run(run: Path, checkpoint: CheckpointSelector) -> ModelLocation:
    if isinstance(checkpoint, int):
        folder = run / f"checkpoint-{checkpoint}"
        if not folder.is_dir():
            steps = ", ".join(str(step_of(each)) for each in list_checkpoints(run)) or "none"
            raise ValueError(f"{run} has no checkpoint of step {checkpoint}; it has those of: {steps}")
        return _from_folder(folder, run)
    if checkpoint not in (None, "newest", "best"):
        raise ValueError(f"checkpoint={checkpoint!r}: expected a step, 'newest' or 'best'")
    newest, incomplete = latest_complete(run)
    if newest is None:
        reason = "; ".join(f"{each.folder.name}: {each.why}" for each in incomplete) or "none was written yet"
        raise ValueError(f"{run} has no complete checkpoint: {reason}")
    best = None if checkpoint == "newest" else best_checkpoint(newest)
    if checkpoint == "best" and best is None:
        raise ValueError(f"{run} has no best checkpoint: train with train.best_metric and data.validation")
    return _from_folder(best or newest, run)


def best_checkpoint(newest: Path) -> Path | None:
    """The checkpoint with the best validation metric, as recorded in the newest one; None: there was no validation."""
    try:
        state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = state.get("best_model_checkpoint")
    folder = newest.parent / Path(name).name if name else None
    return folder if folder is not None and folder.is_dir() else None


def _cached_folder(find: Callable[[], str]) -> Path | None:
    try:
        return Path(find())
    except (OSError, ValueError):
        return None


def _from_hub(path: str, revision: str | None) -> ModelLocation:
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{path}: there is no such folder, and it is not a hub id")
    from huggingface_hub import snapshot_download

    def download() -> str:
        return snapshot_download(path, revision=revision, allow_patterns=_SMALL_FILES)

    try:
        with offline():
            folder = _cached_folder(download)
        # Other libraries download no file that records a reduction, so the cache may lack it.
        if folder is None or (not (folder / REDUCER).is_file() and hub_answers()):
            require_hub(path)
            folder = Path(download())
    except Exception as error:  # offline, unknown, private, ...: each has its own class
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: there is no such folder, and no model of that name on a hub that this machine can reach ({first})"
        ) from error
    return ModelLocation(folder, path, revision)
