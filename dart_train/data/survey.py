"""What is known of the training rows before the first step: the tokens that each costs, and which cannot be used. Only
the sizes of images are read, not their content. Reports are cached by the content of the rows, so that a second start,
or a second rank, only reads them."""

from __future__ import annotations

import bisect
import itertools
import os
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets.fingerprint import Hasher
from filelock import FileLock

from .check import BATCH, RowChecker, map_rows, read_reports
from .check_report import DroppedRows
from .dataset import SkippedRow
from .encoder import Encoder
from .issues import CODES
from .sources import DataSource


@dataclass(frozen=True)
class Survey:
    """lengths: [rows of all sources] the tokens of each row after max_length and after the reduction; 0 if it is
    dropped. mean_lengths: the same as a mean over the decoder's layers, of which those before the reduction have all
    tokens. skipped: the dropped rows."""

    lengths: np.ndarray
    dropped: DroppedRows
    skipped: list[SkippedRow]
    mean_lengths: np.ndarray | None = None

    def check(self, limit: float, on_bad_row: str) -> None:
        """Raises ValueError for a row that ends the run, for more dropped rows than `limit`, and where no row is left.
        limit, on_bad_row: as in the recipe."""
        for row in self.skipped:
            if row.code == "over_limit":
                raise ValueError(f"data.train: row {row.id}: {row.message}")
            if on_bad_row == "error" and row.code != "too_long":
                raise ValueError(
                    f"data.train: row {row.id}: {row.code}: {row.message} (on_bad_row: error; on_bad_row: skip would "
                    "leave it out)"
                )
        self.dropped.check(limit)
        if not self.usable.any():
            raise ValueError(
                f"data.train: none of the {len(self.usable)} rows can be used; the first one is {self.dropped.first}. "
                "To see every fault: python -m dart_train data check RECIPE"
            )

    @property
    def usable(self) -> np.ndarray:
        """[rows of all sources] 1, or 0 if the row is dropped."""
        return (self.lengths > 0).astype(np.int64)


def row_lengths(
    sources: Sequence[DataSource], encoder: Encoder, reducers: Sequence[Any] = (), workers: int | None = None
) -> np.ndarray:
    """[rows of all sources] the tokens of each row after max_length and after the reduction; 0 if it is dropped. For
    grouping by length."""
    return survey_rows(sources, encoder, reducers, workers).lengths


def survey_rows(
    sources: Sequence[DataSource],
    encoder: Encoder,
    reducers: Sequence[Any] = (),
    workers: int | None = None,
    layers: int | None = None,
) -> Survey:
    """workers: processes, by default all available cores, for sources that are worth it. Of the ranks of a machine one
    makes the reports, while the others wait for them. layers: of the decoder, for `mean_lengths`."""
    lengths, dropped, skipped = array("q"), DroppedRows(), list[SkippedRow]()
    means = array("d")
    for source in sources:
        processes = min(_available_cores(), 1 + len(source.rows) // BATCH) if workers is None else workers
        file = _cache_file(source, encoder)
        file.parent.mkdir(parents=True, exist_ok=True)
        checker = RowChecker(source, encoder, decode=False)
        with FileLock(file.with_suffix(".lock")):
            reports = map_rows(source.rows, checker, processes, file.stem, cache_file_name=str(file))
        for batch in reports.iter(batch_size=BATCH):
            for report in read_reports(batch):
                lengths.append(report.cost(reducers))
                if layers is not None:
                    means.append(report.mean_length(reducers, layers))
                dropped.add(report.id, report.fault)
                if report.fault is not None:
                    message = report.fault.message or CODES[report.fault.code][1]
                    skipped.append(SkippedRow(report.id, report.fault.code, source.name, message))
    mean_lengths = None if layers is None else np.array(means, dtype=np.float64)
    return Survey(np.array(lengths, dtype=np.int64), dropped, skipped, mean_lengths)


def is_surveyed(sources: Sequence[DataSource], encoder: Encoder) -> bool:
    """Whether `survey_rows` has been made for all sources on this machine, and would only read it."""
    return all(_is_complete(_cache_file(source, encoder)) for source in sources)


def _cache_file(source: DataSource, encoder: Encoder) -> Path:
    """In the cache of `datasets` and not next to the rows, whose folder may be read-only."""
    key: tuple[Any, ...] = (source.rows._fingerprint, repr(source.store), source.format, dict(source.columns))
    key += (encoder.key(),) if source.by_answer is None else (encoder.key(), "by answer")
    return Path(datasets.config.HF_DATASETS_CACHE) / "dart_train_survey" / f"{Hasher.hash(key)}.arrow"


def _is_complete(file: Path) -> bool:
    """With several processes, `Dataset.map` writes one file for each, named `..._RANK_of_NUMBER`."""
    parts = [part.stem.rpartition("_of_")[2] for part in file.parent.glob(f"{file.stem}_*_of_*{file.suffix}")]
    return file.is_file() or any(parts.count(number) == int(number) for number in set(parts))


def sample_dropped_rows(sources: Sequence[DataSource], encoder: Encoder, number: int) -> DroppedRows:
    """The dropped rows among at most `number` random rows of all sources; only the sizes of images are read."""
    ends = list(itertools.accumulate(len(source.rows) for source in sources))
    total = ends[-1] if ends else 0
    dropped = DroppedRows(sampled=total > number)
    for row in sorted(random.Random(0).sample(range(total), min(number, total))):
        at = bisect.bisect_right(ends, row)
        source, index = sources[at], row - (ends[at] - len(sources[at].rows))
        report = RowChecker(source, encoder, decode=False).check_row(source.rows[index], index)
        dropped.add(report.id, report.fault)
    return dropped


def _available_cores() -> int:
    """Cores that this process may use, where the system can report it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
