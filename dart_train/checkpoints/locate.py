"""Where a model lies: an exported folder, a run, one of its checkpoints, a plain model folder or a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from .atomic import MARK, checkpoints, latest_complete, problems, steps_of

ADAPTER, CONFIG = "adapter_config.json", "config.json"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SMALL = ["*.json", "*.jinja", "*.txt", "*.model", "*.yaml", "*.py"]  # all of a hub id but its weights
Which = int | str | None


@dataclass(frozen=True)
class Place:
    """folder: the files beside the weights; source: what `from_pretrained` is given; run: the run it is of."""

    folder: Path
    source: str
    revision: str | None = None
    run: Path | None = None

    @property
    def adapter(self) -> bool:
        """An adapter, whose base model lies elsewhere."""
        return (self.folder / ADAPTER).is_file()

    @property
    def step(self) -> int | None:
        """The optimizer step of a run's checkpoint."""
        try:
            return int(json.loads((self.folder / MARK).read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            return None


def locate(path: str | Path, checkpoint: Which = None, revision: str | None = None) -> Place:
    """checkpoint: of a run, its step, `newest` or `best`; None: the best where validation judged, else the newest."""
    folder = Path(path)
    if not folder.is_dir():
        return _from_hub(str(path), revision)
    if checkpoints(folder) or _looks_like_a_run(folder):
        return _of_run(folder, checkpoint)
    if checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint!r} was asked for, but {folder} is not the folder of a run")
    return _single(folder, folder.parent if (folder / MARK).is_file() else None)


def _single(folder: Path, run: Path | None) -> Place:
    named_as_one = re.fullmatch(r"checkpoint-\d+", folder.name) and (folder / "trainer_state.json").is_file()
    if (folder / MARK).is_file() or (named_as_one and (folder / "reducer.json").is_file()):
        why = problems(folder)
        if why is not None:
            raise ValueError(f"{folder} is not a whole checkpoint: {why}; take another one of its run")
    if not any((folder / name).is_file() for name in (ADAPTER, CONFIG)):
        raise ValueError(
            f"{folder} holds no model: neither {CONFIG} nor {ADAPTER} is in it; give an exported folder, a run, "
            "a checkpoint of it, or the folder of a model"
        )
    return Place(folder, str(folder), run=run)


def _looks_like_a_run(folder: Path) -> bool:
    bare = not any((folder / name).is_file() for name in (CONFIG, ADAPTER, MARK))
    return bare and (folder / "recipe.yaml").is_file()


def _of_run(run: Path, which: Which) -> Place:
    if isinstance(which, int):
        folder = run / f"checkpoint-{which}"
        if not folder.is_dir():
            steps = ", ".join(str(steps_of(each)) for each in sorted(checkpoints(run), key=steps_of)) or "none"
            raise ValueError(f"{run} has no checkpoint of step {which}; it has those of: {steps}")
        return _single(folder, run)
    if which not in (None, "newest", "best"):
        raise ValueError(f"checkpoint={which!r}: expected a step, 'newest' or 'best'")
    newest, damaged = latest_complete(run)
    if newest is None:
        told = "; ".join(str(each) for each in damaged) or "it has none yet"
        raise ValueError(f"{run} has no whole checkpoint: {told}")
    best = None if which == "newest" else best_of(newest)
    if which == "best" and best is None:
        raise ValueError(f"{run} knows no best checkpoint: train with train.best_metric and data.validation")
    return _single(best or newest, run)


def best_of(newest: Path) -> Path | None:
    """The checkpoint that validation liked best, by what the newest one knows; None where it was not judged."""
    try:
        state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    name = state.get("best_model_checkpoint")
    folder = newest.parent / Path(name).name if name else None
    return folder if folder is not None and folder.is_dir() else None


def _from_hub(path: str, revision: str | None) -> Place:
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"{path}: there is no such folder, and it is no hub id either")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=_SMALL))
    except Exception as error:  # offline, unknown, private, ...: each of its own class
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path}: there is no such folder, and no model of that name on a hub that this machine can reach ({first})"
        ) from error
    return Place(folder, path, revision)
