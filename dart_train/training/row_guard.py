"""Rows that cannot be used: recorded in skipped_rows.jsonl, those that were left out of the order with step 0, others
as training meets them; and the run ends, on every rank before the same step, where there are too many of them or where
steps have nothing to train on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common.distributed import gather_objects
from ..common.io import append_jsonl, read_jsonl, truncate_jsonl
from ..config import Recipe
from ..data.dataset import SkippedRow, too_many_unusable
from .data_feed import TrainFeed

SKIPPED_ROWS_FILE = "skipped_rows.jsonl"
_MAX_EMPTY_STEPS = 3  # in a row
_WEIGHT_UNITS = 1 << 20  # weights are summed over ranks as whole numbers of these: the same in any order

# Of each value, its sum over all ranks; collective.
SumOverRanks = Callable[[Sequence[int]], Sequence[int]]

log = logging.getLogger(__name__)


class UnusableRowsError(ValueError):
    """The rows end the run. What was trained before is worth saving if `RowGuard.trained`."""


class RowGuard:
    """`trained`: some step of this process had targets."""

    def __init__(self, recipe: Recipe, feed: TrainFeed, run: Path, start_step: int, sums: SumOverRanks) -> None:
        self.recipe, self.feed, self.file, self.sums = recipe, feed, run / SKIPPED_ROWS_FILE, sums
        self.lines = [line for line in read_jsonl(self.file, tolerant=True) if line["step"] <= start_step]
        self.counts = {"rows": 0, "bad": 0, "too_long": 0}  # on all ranks, since the start of this process
        self.empty_steps, self.trained = 0, False

    def rewind(self) -> None:
        """On the first rank: removes from the file the steps after the checkpoint, which will be repeated, and records
        the rows that are left out."""
        self.lines = [line for line in self.lines if line["step"]]
        truncate_jsonl(self.file, lambda line: line in self.lines)
        self._record(0, self.feed.left_out)

    def begin_step(self, step: int, rows: int, weight: float, skipped: Sequence[SkippedRow]) -> float:
        """On every rank before the forwards of `step` (1 is the first), with its own numbers: rows read, the weight of
        the targets (their number, where answers have no weights), and the rows that were skipped. Returns the weight of
        all ranks. Raises UnusableRowsError."""
        too_long = sum(row.code == "too_long" for row in skipped)
        refused = sum(row.ends_run for row in skipped)
        units = round(weight * _WEIGHT_UNITS)
        units, *counts, refused = self.sums([units, rows, len(skipped) - too_long, too_long, refused])
        total = units / _WEIGHT_UNITS
        for name, count in zip(self.counts, counts, strict=True):
            self.counts[name] += count
        self.empty_steps = 0 if total else self.empty_steps + 1
        everywhere = [row for part in gather_objects(list(skipped)) for row in part] if sum(counts[1:]) else []
        self._record(step, everywhere)
        problem = self._problem(step, everywhere, bool(refused))
        if problem is not None:
            raise UnusableRowsError(problem)
        self.trained = self.trained or total > 0
        return total

    def _record(self, step: int, rows: Sequence[SkippedRow]) -> None:
        if self.feed.ranks.rank or not rows:
            return
        lines: list[dict[str, Any]] = [{"step": step, **asdict(row)} for row in rows]
        for line in lines:
            del line["ends_run"]
        try:
            append_jsonl(self.file, *lines)
        except OSError as error:  # raised on this rank alone, it would leave the others waiting
            log.warning("%s: skipped rows could not be recorded (%s): %s", self.file, error, lines)

    def _problem(self, step: int, rows: Sequence[SkippedRow], refused: bool) -> str | None:
        data = self.recipe.data
        if refused:
            row = next(row for row in rows if row.ends_run)
            return f"{row.message}. It would have been used in step {step}"
        problem = too_many_unusable(self.counts, data.max_bad_fraction, data.max_length, rows[-1] if rows else None)
        if problem is not None:
            return f"{problem}. The skipped rows are in {self.file}"
        if self.empty_steps < _MAX_EMPTY_STEPS:
            return None
        too_long = self.counts["too_long"]
        reason = (
            f"{too_long} of {self.counts['rows']} rows were dropped because they are longer than data.max_length "
            f"{data.max_length} (an image alone may be); raise data.max_length, or set data.max_pixels for smaller "
            "images"
            if too_long
            else "their rows have no supervised token or cannot be used"
        )
        return (
            f"steps {step - self.empty_steps + 1} to {step} have nothing to train on: {reason}. Check all rows with: "
            "python -m dart_train data check RECIPE"
        )
