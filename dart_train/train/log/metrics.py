"""`metrics.jsonl`: one object a line, always written."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

NAME = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsFile(TrainerCallback):
    """A resumed run goes on behind the line of its checkpoint; what was written after that one will come again."""

    def __init__(self, run: Path, start_step: int = 0) -> None:
        self.file = run / NAME
        if self.file.exists():
            replace_text(self.file, "".join(f"{line}\n" for line in _until(self.file, start_step)))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, "time": round(time.time(), 3), **logs}
            try:
                add_lines(self.file, [line])
            except OSError as error:  # a full disk: what becomes of the run is decided where checkpoints are saved
                log.warning("%s: the line of step %s could not be written: %s", self.file, state.global_step, error)


def add_lines(file: Path, lines: Iterable[Any]) -> None:
    """All of them or none: half a line on a full disk would spoil the next one."""
    size = file.stat().st_size if file.exists() else 0
    try:
        with file.open("a", encoding="utf-8") as content:
            content.writelines(f"{json.dumps(line)}\n" for line in lines)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(file, size)
        raise


def replace_text(file: Path, text: str) -> None:
    """All of it or nothing, whenever the process is killed."""
    draft = file.with_name(f".{file.name}.unfinished")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, file)


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
