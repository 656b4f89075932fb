"""`metrics.jsonl`: one object a line, always written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

NAME = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """A resumed run goes on behind the line of its checkpoint; what was written after that one will come again."""

    def __init__(self, run: Path, start_step: int = 0) -> None:
        self.file = run / NAME
        if self.file.exists():
            self.file.write_text("".join(f"{line}\n" for line in _until(self.file, start_step)), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / NAME).read_text(encoding="utf-8").splitlines()]


def _until(file: Path, step: int) -> list[str]:
    """Lines up to `step`; a last one that a killed process cut short is left out."""
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
