"""W&B and TensorBoard: transformers' own callbacks, started and guarded here. Their failures never stop a run.

Transformers' callbacks use a W&B run or a writer that exists already. So it is created here: the server is probed
first, a failed start falls back to disk, the run id is kept for a resume, the recipe is recorded. They do the rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import TrainerCallback

from .hub import can_connect
from .io import atomic_write

log = logging.getLogger(__name__)
_RUN_ID_FILE, _SENT_FILE = "wandb_run_id", "wandb_sent.json"
_PROBE_SECONDS, _WAIT_SECONDS = 5.0, 30
_LATER = "the run continues and is written to %s/wandb; upload it later with `wandb sync`"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker records about a run. mode: of W&B, or auto: see `wandb_mode`."""

    folder: Path
    project: str
    name: str | None = None  # None: the name of the folder
    group: str | None = None
    tags: Sequence[str] = ()
    mode: str = "auto"
    config: dict[str, Any] = field(default_factory=dict)


def make_trackers(names: Sequence[str], run: TrackedRun) -> list[Tracker]:
    """names: of wandb, tensorboard and none."""
    classes: dict[str, type[Tracker]] = {"wandb": WandbTracker, "tensorboard": TensorBoardTracker}
    return [classes[name](run) for name in names if name != "none"]


class Tracker(TrainerCallback):
    """Subclasses override `start`, `log_images` and `finish`; any exception there or in transformers' callback ends the
    tracking, not the training."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run
        self.backend: Any = None  # the W&B run or the writer; None: not started, or given up
        self.callback: Any = None  # transformers' own

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        self._guarded(self.start, state.global_step)
        if self.backend is not None:
            self._guarded(self.callback.on_train_begin, args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and self.backend is not None:
            numbers = {name: value for name, value in logs.items() if isinstance(value, int | float)}
            if any(name.startswith("lr_") for name in logs):
                numbers.pop("learning_rate", None)  # that of the first part alone, under a name for all
            if self.is_new(_kind_of(logs), state.global_step):
                self._guarded(self.callback.on_log, args, state, control, logs=numbers, **kwargs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.backend is not None:
            self._guarded(self.callback.on_save, args, state, control, **kwargs)

    def show(self, name: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        if self.backend is not None and self.is_new(name, step):
            self._guarded(self.log_images, name, images, captions, step)

    def show_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """Entries are text, numbers, truth values, images, or None."""
        if self.backend is not None and rows and self.is_new(name, step):
            self._guarded(self.log_table, name, columns, rows, step)

    def is_new(self, name: str, step: int) -> bool:
        """Whether `name` of that step is to be sent: not if an earlier process of the run did."""
        return True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.backend is not None:
            self._guarded(self.callback.on_train_end, args, state, control, **kwargs)
        if self.backend is not None:
            self._guarded(self.finish)
        self.backend = None

    def _guarded(self, call: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
        """The run folder has the numbers and images in any case."""
        try:
            call(*arguments, **keywords)
        except Exception as error:
            log.warning("%s disabled: %s", type(self).__name__, error)
            self.backend = None

    def start(self, step: int) -> None:
        """Sets `backend` and `callback`. step: the one that the run continues after; 0: a new run."""
        raise NotImplementedError

    def log_images(self, name: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        raise NotImplementedError

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError


class WandbTracker(Tracker):
    """A resumed run continues under the same id. Without a key, or without a reachable server, W&B writes to disk, for
    a later upload; it never asks for a key.

    W&B can only append. A run that is killed at step 47 and resumed from the checkpoint of step 40 repeats steps 41 to
    47, and would show them twice; so a file in the run folder has the last step that was sent, of each kind of record,
    and what was sent is not sent again. A resumed run has the same numbers."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__(run)
        self.sent: dict[str, int] = {}

    def is_new(self, name: str, step: int) -> bool:
        if step <= self.sent.get(name, -1):
            return False
        self.sent[name] = step
        with contextlib.suppress(OSError):  # a full disk: what is repeated is then sent twice
            atomic_write(self.run.folder / _SENT_FILE, json.dumps(self.sent))
        return True

    def start(self, step: int) -> None:
        if not step:  # nothing of an earlier start in this folder is continued
            (self.run.folder / _RUN_ID_FILE).unlink(missing_ok=True)
        self.sent = _read_sent(self.run.folder / _SENT_FILE) if step else {}
        repeated = max(self.sent.values(), default=0)
        if repeated > step:
            log.warning("W&B has steps %s to %s of this run already: they are not sent again", step + 1, repeated)
        import wandb
        from transformers.integrations import WandbCallback

        mode = wandb_mode(self.run.mode)
        if mode == "online" and not _server_is_reachable():
            log.warning("W&B cannot be reached: %s", _LATER % self.run.folder)
            mode = "offline"
        for attempt in dict.fromkeys((mode, "offline")):
            try:
                self.backend, self.callback = self._init_run(attempt), WandbCallback()
                return
            except Exception as error:  # a slow server, an invalid key, a full disk, ...
                log.warning("W&B cannot start in mode %s (%s): %s", attempt, error, _LATER % self.run.folder)
                wandb.teardown(1)  # its service still waits for the server and would write nothing else

    def _init_run(self, mode: Any) -> Any:
        import wandb

        run = self.run
        timeouts = {"init_timeout": _WAIT_SECONDS, "finish_timeout": _WAIT_SECONDS, "finish_timeout_raises": False}
        return wandb.init(
            project=run.project,
            name=run.name or run.folder.name,
            group=run.group,
            tags=list(run.tags) or None,
            mode=mode,
            config=run.config,
            dir=str(run.folder),
            id=_run_id(run.folder),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                **({} if mode == "offline" else timeouts),  # of the server; writing to disk has no limit
            ),
        )

    def log_images(self, name: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        import wandb

        # One key each: a list must have images of one size.
        pairs = enumerate(zip(images, captions, strict=True))
        shown = {f"{name}/{i}": wandb.Image(image, caption=caption) for i, (image, caption) in pairs}
        self.backend.log({**shown, "train/global_step": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        import wandb

        data = [[wandb.Image(each) if isinstance(each, Image.Image) else each for each in row] for row in rows]
        self.backend.log({name: wandb.Table(columns=list(columns), data=data), "train/global_step": step})

    def finish(self) -> None:
        self.backend.finish()


class TensorBoardTracker(Tracker):
    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from transformers.integrations import TensorBoardCallback

        # Steps after the checkpoint are repeated: what an earlier process wrote of them is not shown.
        folder, purge = str(self.run.folder / "tensorboard"), step + 1 if step else None
        self.backend = SummaryWriter(folder, purge_step=purge)
        self.backend.add_text("recipe", f"```json\n{json.dumps(self.run.config, indent=2)}\n```")
        self.callback = TensorBoardCallback(self.backend)

    def log_images(self, name: str, images: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
        for i, image in enumerate(images):
            self.backend.add_image(f"{name}/{i}", np.asarray(image), step, dataformats="HWC")
        self.backend.flush()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        shown = [i for i in range(len(columns)) if not any(isinstance(row[i], Image.Image) for row in rows)]
        lines = [[columns[i] for i in shown], ["---"] * len(shown), *([str(row[i]) for i in shown] for row in rows)]
        cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
        self.backend.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)
        self.backend.flush()

    def finish(self) -> None:
        self.backend.close()


def wandb_mode(requested: str) -> Any:
    """`auto`: WANDB_MODE if it is set; otherwise online if there is a key, else offline."""
    if requested != "auto":
        return requested
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _has_netrc_key() else "offline"


def _has_netrc_key() -> bool:
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _server_is_reachable() -> bool:
    """Checked first, because W&B itself tries for a minute and a half."""
    return can_connect(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"), _PROBE_SECONDS)


def _read_sent(file: Path) -> dict[str, int]:
    """Empty where an earlier release tracked the run: what is repeated is then sent twice."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: step for name, step in content.items() if isinstance(step, int)}


def _kind_of(logs: Mapping[str, Any]) -> str:
    if "eval_loss" in logs:
        return "validation"
    return "training" if "loss" in logs else "summary"


def _run_id(folder: Path) -> str:
    """The same for every start that resumes in this folder."""
    file = folder / _RUN_ID_FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
