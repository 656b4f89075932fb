"""A step whose loss or gradient is no number: never taken, known to every rank at once, its rows written down."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..common.io import append_jsonl, read_jsonl, truncate_jsonl
from ..config import Recipe
from .data_feed import TrainFeed

NAME = "bad_steps.jsonl"
log = logging.getLogger(__name__)
_IN_A_ROW = 20  # skipped one after the other: then it is not the rows, and no step will ever be taken again


class NonFiniteStepError(ValueError):
    """The recipe says to stop, or nothing but bad steps come."""


class NonFiniteGuard:
    """`count`: bad steps of the run so far, those before a resume among them."""

    def __init__(self, recipe: Recipe, feed: TrainFeed, run: Path, start_step: int = 0) -> None:
        self.on_nan, self.feed, self.file = recipe.train.on_nan, feed, run / NAME
        # In fp16 a gradient that is too large for the present scale is a daily thing: the scaler skips and lowers it.
        self.scaled = recipe.train.precision == "fp16"
        self.losses: list[Tensor] = []
        self.stepped, self.in_a_row = True, 0
        self.lines = [line for line in read_jsonl(self.file, tolerant=True) if line["step"] <= start_step]
        self.count = len({line["step"] for line in self.lines})

    def rewind(self) -> None:
        """On the first rank: steps that will come again are taken out of the file."""
        if self.file.exists():
            truncate_jsonl(self.file, lambda line: line in self.lines)

    def heard(self, loss: Tensor) -> Tensor:
        """The loss of one forward on this rank; back comes what may be added up for a line of metrics."""
        self.losses.append(loss.detach())
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def seen(self) -> bool:
        """Whether this rank saw anything wrong in the step that ends."""
        wrong = any(not math.isfinite(loss) for loss in self._told())
        return wrong or not (self.stepped or self.scaled)

    def judge(self, step: int, bad: bool) -> None:
        """On every rank at the end of `step` (1 is the first); `bad`: some rank saw something. Raises BadStep."""
        losses = self._told()
        self.losses = []
        if not bad:
            self.in_a_row = 0
            return
        self.count, self.in_a_row = self.count + 1, self.in_a_row + 1
        lines = _concerned(_gathered(self._line(step, losses)))
        if self.feed.ranks.rank == 0:
            self._write(lines)
        if self.on_nan == "stop" or self.in_a_row >= _IN_A_ROW:
            raise NonFiniteStepError(self._said(step, lines))

    def _write(self, lines: list[Any]) -> None:
        try:
            append_jsonl(self.file, *lines)
        except OSError as error:  # this rank alone would end the run for it
            log.warning("%s: bad steps could not be written down (%s): %s", self.file, error, lines)

    def _told(self) -> list[float]:
        return torch.stack(self.losses).float().tolist() if self.losses else []

    def _line(self, step: int, losses: list[float]) -> dict[str, Any]:
        rows = [name for micro in range(len(losses)) for name in self.feed.row_ids(step - 1, micro)]
        told = [loss if math.isfinite(loss) else str(loss) for loss in losses]  # JSON has no nan
        return {"step": step, "rank": self.feed.ranks.rank, "taken": self.stepped, "losses": told, "rows": rows}

    def _said(self, step: int, lines: list[Mapping[str, Any]]) -> str:
        said = "; ".join(f"{_what(line)} at step {step} on rank {line['rank']}, rows {_few(line)}" for line in lines)
        again = f", {self.in_a_row} steps one after the other" if self.on_nan == "skip" else ""
        return (
            f"{said}{again}. The step was not taken and nothing was saved since. All of it: {self.file}. Lower "
            "train.learning_rate, look at the rows (python -m dart_train data check RECIPE), or go on without such "
            "steps: train.on_nan: skip"
        )


def _what(line: Mapping[str, Any]) -> str:
    strange = next((loss for loss in line["losses"] if isinstance(loss, str)), None)
    return f"the loss is {strange}" if strange else "the gradient is no number"


def _few(line: Mapping[str, Any]) -> str:
    return ", ".join(line["rows"][:8]) + (", ..." if len(line["rows"]) > 8 else "")


def _concerned(lines: list[Any]) -> list[Any]:
    """Ranks whose loss is strange; all of them where only the gradient is."""
    return [line for line in lines if _what(line).startswith("the loss")] or lines


def _gathered(line: Any) -> list[Any]:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [line]
    lines: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(lines, line)
    return lines
