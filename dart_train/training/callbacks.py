"""The line on the screen."""

from __future__ import annotations

import logging
import math
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..common.io import append_jsonl, read_jsonl, truncate_jsonl

if TYPE_CHECKING:
    from .trainer import DartTrainer

# What all ranks must agree on behind each step: that it was a bad one, and that the run is to stop here.


class AgreeAtStepEnd(TrainerCallback):
    def __init__(self, trainer: DartTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        guard, stopping = self.trainer.guard, self.trainer.stopping
        bad, stop = self._anywhere(guard.seen(), stopping.why is not None)
        guard.judge(state.global_step, bad)
        if stop:
            stopping.done = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # whoever asked does not wait for it

    def _anywhere(self, *here: bool) -> list[bool]:
        """What any rank says; one small message a step."""
        told = torch.tensor([int(each) for each in here], device=self.trainer.args.device)
        return [bool(each) for each in self.trainer.accelerator.reduce(told, "sum").tolist()]


# What a person sees of a run: a line on the screen, metrics.jsonl, and trackers on top.


# `metrics.jsonl`: one object a line, always written.

NAME = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """A resumed run goes on behind the line of its checkpoint; what was written after that one will come again."""

    def __init__(self, run: Path, start_step: int = 0) -> None:
        self.file = run / NAME
        if self.file.exists():
            truncate_jsonl(self.file, lambda line: line.get("step", math.inf) <= start_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            try:
                append_jsonl(self.file, line)
            except OSError as error:  # a full disk: what becomes of the run is decided where checkpoints are saved
                log.warning("%s: the line of step %s could not be written: %s", self.file, state.global_step, error)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / NAME)


class ProgressLine(TrainerCallback):
    """Loss, speed, visual tokens before -> after, time left and memory, whenever metrics are told."""

    def __init__(self) -> None:
        self.began, self.first = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not (state.is_world_process_zero and logs):
            return
        if "loss" in logs:
            left = self._left(state.global_step, state.max_steps)
            print(line(state.global_step, state.max_steps, logs, left), file=sys.stderr, flush=True)
        elif "eval_loss" in logs:
            judged = "  ".join(f"{name.removeprefix('eval_')} {logs[name]:.4f}" for name in logs if "eval_" in name)
            print(f"validation at step {state.global_step}: {judged}", file=sys.stderr, flush=True)

    def _left(self, step: int, steps: int) -> timedelta:
        each = (time.perf_counter() - self.began) / max(step - self.first, 1)
        return timedelta(seconds=round(each * (steps - step)))


def line(step: int, steps: int, logs: dict[str, Any], left: timedelta) -> str:
    parts = [f"step {step}/{steps}", f"loss {logs['loss']:.4f}", f"{logs['tokens_per_second']:,.0f} tokens/s"]
    if logs.get("samples", 1) and logs.get("visual_before"):
        parts.append(f"visual {logs['visual_before']:,.0f} -> {logs['visual_after']:,.0f}")
    parts += [f"{left} left", f"{logs['peak_memory_gib']:.1f} GiB"]
    return "  ".join(parts)
