"""W&B and TensorBoard: told the same numbers as `metrics.jsonl`, and never in the way of the run."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from transformers import TrainerCallback

from ..config import Recipe

log = logging.getLogger(__name__)
_RUN_ID = "wandb_run_id"
_PROBE_SECONDS, _WAIT_SECONDS = 5.0, 30
_LATER = "the run goes on and is written to %s/wandb; send it later with `wandb sync`"


def trackers(recipe: Recipe, run: Path) -> list[Wandb | TensorBoard]:
    made: dict[str, type[Wandb] | type[TensorBoard]] = {"wandb": Wandb, "tensorboard": TensorBoard}
    return [made[name](recipe, run) for name in recipe.log.report_to if name != "none"]


class _Tracker(TrainerCallback):
    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.told: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self._bear(self.begin)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._try(self.end)
        self.told = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs:
            self._try(self.tell, {k: v for k, v in logs.items() if isinstance(v, int | float)}, state.global_step)

    def show(self, name: str, pictures: Sequence[Image.Image], step: int) -> None:
        self._try(self.picture, name, pictures, step)

    def _try(self, telling: Callable[..., None], *what: Any) -> None:
        if self.told is not None:
            self._bear(telling, *what)

    def _bear(self, telling: Callable[..., None], *what: Any) -> None:
        """Whatever a tracker suffers from, the run folder has the numbers and the pictures."""
        try:
            telling(*what)
        except Exception as error:
            log.warning("%s is told no more: %s", type(self).__name__, error)
            self.told = None

    def begin(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError

    def tell(self, numbers: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def picture(self, name: str, pictures: Sequence[Image.Image], step: int) -> None:
        raise NotImplementedError


class Wandb(_Tracker):
    """The run goes on under the same id when it is resumed. Without a key it is written to disk, to be synchronised
    later; nobody is ever asked for one."""

    def begin(self) -> None:
        import wandb

        mode = wandb_mode(self.recipe.log.mode)
        if mode == "online" and not _reachable():
            log.warning("W&B cannot be reached: %s", _LATER % self.run)
            mode = "offline"
        for each in dict.fromkeys((mode, "offline")):
            try:
                self.told = self._began(each)
                return
            except Exception as error:  # a server that is slow, a key that is not valid, a disk that is full, ...
                log.warning("W&B, %s, cannot begin (%s): %s", each, error, _LATER % self.run)
                wandb.teardown(1)  # its own process still waits for the server, and would write nothing else

    def _began(self, mode: Any) -> Any:
        import wandb

        say = self.recipe.log
        return wandb.init(
            project=say.project,
            name=say.name or self.run.name,
            group=say.group,
            tags=list(say.tags) or None,
            mode=mode,
            config=self.recipe.to_dict(),
            dir=str(self.run),
            id=_run_id(self.run),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_stats=True,
                # Of a server; what is only written to the disk is waited for.
                **({} if mode == "offline" else _patience()),
            ),
        )

    def tell(self, numbers: dict[str, float], step: int) -> None:
        self.told.log({_named(name): value for name, value in numbers.items()} | {"step": step}, step=step)

    def picture(self, name: str, pictures: Sequence[Image.Image], step: int) -> None:
        import wandb

        each = {f"{name}/{number}": wandb.Image(picture) for number, picture in enumerate(pictures)}
        self.told.log(each, step=step)  # one by one: a list wants pictures of one size

    def end(self) -> None:
        self.told.finish()


class TensorBoard(_Tracker):
    def begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.told = SummaryWriter(str(self.run / "tensorboard"))
        self.told.add_text("recipe", f"```yaml\n{self.recipe.to_yaml()}```")

    def tell(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.told.add_scalar(_named(name), value, step)
        self.told.flush()

    def picture(self, name: str, pictures: Sequence[Image.Image], step: int) -> None:
        for number, picture in enumerate(pictures):
            self.told.add_image(f"{name}/{number}", np.asarray(picture), step, dataformats="HWC")
        self.told.flush()

    def end(self) -> None:
        self.told.close()


def wandb_mode(asked: str) -> Any:
    """What `auto` means here: online only where there is a key to be online with."""
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_knows() else "offline"


def _patience() -> dict[str, Any]:
    return {"init_timeout": _WAIT_SECONDS, "finish_timeout": _WAIT_SECONDS, "finish_timeout_raises": False}


def _reachable() -> bool:
    """Asked beforehand: W&B's own attempt takes a minute and a half."""
    where = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    port = where.port or (443 if where.scheme == "https" else 80)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # another machine connects; whether it can, only the attempt tells
    try:
        socket.create_connection((where.hostname or "", port), timeout=_PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _netrc_knows() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _run_id(run: Path) -> str:
    """The same for every start in this folder."""
    file = run / _RUN_ID
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _named(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
