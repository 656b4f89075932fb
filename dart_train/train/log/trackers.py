"""W&B and TensorBoard: told the same numbers as `metrics.jsonl`, and never in the way of the run."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...recipe import Recipe

log = logging.getLogger(__name__)
_RUN_ID = "wandb_run_id"


def trackers(recipe: Recipe, run: Path) -> list[TrainerCallback]:
    made = {"wandb": Wandb, "tensorboard": TensorBoard}
    return [made[name](recipe, run) for name in recipe.log.report_to if name != "none"]


class _Tracker(TrainerCallback):
    def __init__(self, recipe: Recipe, run: Path) -> None:
        self.recipe, self.run = recipe, run
        self.told: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.told is None or not logs:
            return
        try:
            self.tell({k: v for k, v in logs.items() if isinstance(v, int | float)}, state.global_step)
        except Exception as error:  # whatever a tracker suffers from, metrics.jsonl has the numbers
            log.warning("%s is told no more: %s", type(self).__name__, error)
            self.told = None

    def tell(self, numbers: dict[str, float], step: int) -> None:
        raise NotImplementedError


class Wandb(_Tracker):
    """The run goes on under the same id when it is resumed. Without a key it is written to disk, to be synchronised
    later; nobody is ever asked for one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        import wandb

        say = self.recipe.log
        self.told = wandb.init(
            project=say.project,
            name=say.name or self.run.name,
            group=say.group,
            tags=list(say.tags) or None,
            mode=wandb_mode(say.mode),
            config=self.recipe.to_dict(),
            dir=str(self.run),
            id=_run_id(self.run),
            resume="allow",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_stats=True),
        )

    def tell(self, numbers: dict[str, float], step: int) -> None:
        self.told.log({_named(name): value for name, value in numbers.items()} | {"step": step}, step=step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.told is not None:
            self.told.finish()
            self.told = None


class TensorBoard(_Tracker):
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            self.told = SummaryWriter(str(self.run / "tensorboard"))
            self.told.add_text("recipe", f"```yaml\n{self.recipe.to_yaml()}```")

    def tell(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.told.add_scalar(_named(name), value, step)
        self.told.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.told is not None:
            self.told.close()
            self.told = None


def wandb_mode(asked: str) -> Any:
    """What `auto` means here: online only where there is a key to be online with."""
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if os.environ.get("WANDB_API_KEY") or _netrc_knows() else "offline"


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
