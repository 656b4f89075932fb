"""The line on the screen."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from transformers import TrainerCallback


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
