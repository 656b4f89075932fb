"""Steps with a NaN or Inf loss or gradient: detected on every rank in the same step, never taken, and recorded with
their rows in bad_steps.jsonl."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.distributed import gather_objects
from ..common.io import append_jsonl, read_jsonl, truncate_jsonl
from ..config import Recipe
from .data_feed import TrainFeed

BAD_STEPS_FILE = "bad_steps.jsonl"
_MAX_IN_A_ROW = 20  # so many skipped steps are not the fault of their rows: no step will be taken any more
_SHOWN_ROWS = 8

log = logging.getLogger(__name__)


class NonFiniteStepError(ValueError):
    """A step was NaN or Inf and train.on_nan is stop, or too many in a row were."""


class NonFiniteGuard:
    """`count`: NaN and Inf steps of the run so far, those before a resume included. `step_was_taken`: whether the
    optimizer changed the parameters in this step."""

    def __init__(self, recipe: Recipe, feed: TrainFeed, run: Path, start_step: int = 0) -> None:
        self.on_nan, self.feed, self.file = recipe.train.on_nan, feed, run / BAD_STEPS_FILE
        # In fp16 a gradient that overflows at the present scale is ordinary: the scaler skips the step and lowers it.
        self.loss_scaling = recipe.train.precision == "fp16"
        self.losses: list[Tensor] = []
        self.step_was_taken, self.in_a_row = True, 0
        self.lines = [line for line in read_jsonl(self.file, tolerant=True) if line["step"] <= start_step]
        self.count = len({line["step"] for line in self.lines})

    def rewind(self) -> None:
        """On the first rank: removes from the file the steps after the checkpoint, which will be repeated."""
        truncate_jsonl(self.file, lambda line: line in self.lines)

    def record_loss(self, loss: Tensor) -> Tensor:
        """Takes the loss of one forward on this rank; returns a finite one to be summed for the metrics."""
        self.losses.append(loss.detach())
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def saw_nonfinite(self) -> bool:
        """Whether this rank saw NaN or Inf in the step that ends."""
        nonfinite_loss = any(not math.isfinite(loss) for loss in self._losses())
        return nonfinite_loss or not (self.step_was_taken or self.loss_scaling)

    def end_step(self, step: int, nonfinite: bool) -> None:
        """On every rank at the end of `step` (1 is the first). nonfinite: some rank saw NaN or Inf.
        Raises NonFiniteStepError."""
        losses = self._losses()
        self.losses = []
        if not nonfinite:
            self.in_a_row = 0
            return
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        lines = _lines_with_the_cause(gather_objects(self._line(step, losses)))
        if self.feed.ranks.rank == 0:
            try:
                append_jsonl(self.file, *lines)
            except OSError as error:  # raised on this rank alone, it would leave the others waiting
                log.warning("%s: NaN or Inf steps could not be recorded (%s): %s", self.file, error, lines)
        if self.on_nan == "stop" or self.in_a_row >= _MAX_IN_A_ROW:
            raise NonFiniteStepError(self._message(step, lines))

    def _losses(self) -> list[float]:
        return torch.stack(self.losses).float().tolist() if self.losses else []

    def _line(self, step: int, losses: list[float]) -> dict[str, Any]:
        rows = [name for micro in range(len(losses)) for name in self.feed.row_ids(step - 1, micro)]
        values = [loss if math.isfinite(loss) else str(loss) for loss in losses]  # JSON has no NaN
        return {"step": step, "rank": self.feed.ranks.rank, "taken": self.step_was_taken, "losses": values,
                "rows": rows}  # fmt: skip

    def _message(self, step: int, lines: list[Mapping[str, Any]]) -> str:
        causes = "; ".join(f"{_cause(line)} at step {step}, rank {line['rank']} ({_rows(line)})" for line in lines)
        repeated = f", for {self.in_a_row} steps in a row" if self.on_nan == "skip" else ""
        return (
            f"{causes}{repeated}. The step was not taken and nothing has been saved since. Full record: {self.file}. "
            "Lower train.learning_rate, check the rows (python -m dart_train data check RECIPE), or skip such steps: "
            "train.on_nan: skip"
        )


def _cause(line: Mapping[str, Any]) -> str:
    value = next((loss for loss in line["losses"] if isinstance(loss, str)), None)
    return f"loss is {value}" if value else "NaN or Inf gradient"


def _rows(line: Mapping[str, Any]) -> str:
    return "rows " + ", ".join(line["rows"][:_SHOWN_ROWS]) + (", ..." if len(line["rows"]) > _SHOWN_ROWS else "")


def _lines_with_the_cause(lines: list[Any]) -> list[Any]:
    """Ranks whose loss is NaN or Inf; all of them where only the gradient, which they share, is."""
    return [line for line in lines if _cause(line).startswith("loss")] or lines
