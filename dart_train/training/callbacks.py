"""What happens at the beginning and end of a step, and at each line of metrics: the step's budget, the agreement of
all ranks, metrics.jsonl, and the progress line. Trackers are in `common/trackers`, overlays in `overlays`."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..common.io import append_jsonl, read_jsonl, truncate_jsonl
from .liveness import StopRequest
from .nonfinite import NonFiniteGuard
from .objective import StepBudgets
from .throughput import ThroughputMeter
from .trainable import learning_rates

METRICS_FILE = "metrics.jsonl"
# Of each value, whether it is true on any rank; collective.
AnyRank = Callable[..., list[bool]]

log = logging.getLogger(__name__)


class ApplyStepBudget(TrainerCallback):
    """Before the forwards of an optimizer step: sets its budget, the same on every rank, and starts the meter.
    `learning_rates`: those of this step, by part."""

    def __init__(self, budgets: StepBudgets, meter: ThroughputMeter) -> None:
        self.budgets, self.meter = budgets, meter
        self.learning_rates: dict[str, float] = {}

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.budgets.start_step(state.global_step)
        self.learning_rates = learning_rates(optimizer)
        self.meter.start_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.meter.end_step()


class AgreeAtStepEnd(TrainerCallback):
    """After each step all ranks agree on whether it was NaN or Inf on any of them, and whether any of them was
    requested to stop. One small message a step."""

    def __init__(self, guard: NonFiniteGuard, stop: StopRequest, any_rank: AnyRank) -> None:
        self.guard, self.stop, self.any_rank = guard, stop, any_rank

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        nonfinite, stop = self.any_rank(self.guard.saw_nonfinite(), self.stop.reason is not None)
        self.guard.end_step(state.global_step, nonfinite)
        if stop:
            self.stop.agreed = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # a scheduler does not wait for it


class MetricsFile(TrainerCallback):
    """metrics.jsonl, one object a line. A resumed run continues after the line of its checkpoint: later lines are
    removed, and written again when their steps are repeated."""

    def __init__(self, run: Path, start_step: int = 0) -> None:
        self.file = run / METRICS_FILE
        truncate_jsonl(self.file, lambda line: line.get("step", math.inf) <= start_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            try:
                append_jsonl(self.file, {"step": state.global_step, "time": round(time.time(), 3), **logs})
            except OSError as error:  # a full disk: whether the run ends is decided when a checkpoint is saved
                log.warning("%s: the line of step %s could not be written: %s", self.file, state.global_step, error)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / METRICS_FILE)


class ProgressLine(TrainerCallback):
    """Prints loss, learning rate, gradient norm, speed, visual tokens before -> after, skipped rows, time left and
    memory with each line of metrics."""

    def __init__(self) -> None:
        self.began, self.first = time.perf_counter(), 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not (state.is_world_process_zero and logs):
            return
        if "loss" in logs:
            seconds_per_step = (time.perf_counter() - self.began) / max(state.global_step - self.first, 1)
            left = timedelta(seconds=round(seconds_per_step * (state.max_steps - state.global_step)))
            print(progress_line(state.global_step, state.max_steps, logs, left), file=sys.stderr, flush=True)
        elif "eval_loss" in logs:
            metrics = "  ".join(f"{name.removeprefix('eval_')} {logs[name]:.4f}" for name in logs if "eval_" in name)
            print(f"validation at step {state.global_step}: {metrics}", file=sys.stderr, flush=True)


def progress_line(step: int, steps: int, logs: dict[str, Any], left: timedelta) -> str:
    parts = [f"step {step}/{steps}", f"loss {logs['loss']:.4f}"]
    rates = {name.removeprefix("lr_"): rate for name, rate in logs.items() if name.startswith("lr_")}
    if rates:
        same = len(set(rates.values())) == 1
        listed = (
            [f"{next(iter(rates.values())):.1e}"] if same else [f"{part} {rate:.1e}" for part, rate in rates.items()]
        )
        parts.append(f"lr {', '.join(listed)}")
    if "grad_norm" in logs:
        parts.append(f"gradient {logs['grad_norm']:.3g}")
    parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if logs.get("samples", 1) and logs.get("visual_before"):
        parts.append(f"visual {logs['visual_before']:,.0f} -> {logs['visual_after']:,.0f}")
    if logs.get("skipped_rows"):
        parts.append(f"{logs['skipped_rows']:,.0f} rows skipped")
    parts += [f"{left} left", f"{logs['peak_memory_gib']:.1f} GiB"]
    return "  ".join(parts)
