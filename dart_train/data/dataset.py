"""What a `DataLoader` reads: rows are opened, checked and encoded on demand. A bad row is skipped, logged with its id
and counted, or ends the run. It is not replaced, so no other row changes its position."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset as Rows
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .encoder import Encoded, Encoder
from .issues import CODES, BadRowError
from .sources import DataSource
from .truncation import TooLongError
from .videos import open_media

log = logging.getLogger(__name__)
_MAX_WORKERS = 256  # loader processes that have a counter of their own
_COUNTED = ("rows", "bad", "too_long", "shortened")
_MIN_ROWS = 100  # before so many rows are read, the fraction of unusable ones is not meaningful


@dataclass(frozen=True)
class SkippedRow:
    """Placeholder for a skipped row; the collator drops it. ends_run: the recipe does not allow such a row."""

    id: str
    code: str
    source: str = ""
    message: str = ""
    ends_run: bool = False


def too_many_unusable(
    counts: Mapping[str, int], limit: float, max_length: int | None, last: SkippedRow | None = None
) -> str | None:
    """The message if more than `limit` of the rows read so far cannot be used, else None. counts: `rows`, `bad` and
    `too_long`."""
    unusable = counts["bad"] + counts["too_long"]
    if unusable <= limit * max(counts["rows"], _MIN_ROWS):
        return None
    too_long = f", {counts['too_long']} of them longer than max_length {max_length}" if counts["too_long"] else ""
    example = f"; the last one is {last.id}: {last.code}: {last.message}" if last else ""
    return (
        f"{unusable} of {counts['rows']} rows are bad{too_long}: more than max_bad_fraction {limit}{example}. "
        "Check all rows with: python -m dart_train data check RECIPE"
    )


class RowReader:
    """One row of one source -> `Encoded` or `SkippedRow`. Counts are shared with the loader's processes. With `defer`,
    what ends a run is not raised where a row is read, often in a process of the loader, but left to the trainer: a row
    that is not allowed has `ends_run`, and the fraction of unusable rows is not checked here."""

    def __init__(
        self,
        sources: Sequence[DataSource],
        encoder: Encoder,
        on_bad_row: str = "skip",
        max_bad_fraction: float = 0.05,
        defer: bool = False,
    ) -> None:
        if on_bad_row not in ("skip", "error"):
            raise ValueError(f"on_bad_row: got {on_bad_row!r}, expected skip or error")
        self.sources, self.encoder = list(sources), encoder
        self.on_bad_row, self.max_bad_fraction, self.defer = on_bad_row, max_bad_fraction, defer
        self._counts = torch.zeros(_MAX_WORKERS, len(_COUNTED), dtype=torch.int64).share_memory_()

    @property
    def counts(self) -> dict[str, int]:
        """Rows read (loaders read ahead of the model), and how many of them were bad and skipped, dropped because they
        are longer than max_length, or shortened to it."""
        return dict(zip(_COUNTED, self._counts.sum(0).tolist(), strict=True))

    def read(self, source: DataSource, row: Any, index: int) -> Encoded | SkippedRow:
        self._count("rows")
        try:
            sample = source.sample(row, index)
            encoded = self.encoder.encode(sample, [open_media(source.store, ref) for ref in sample.media])
        except BadRowError as bad:
            return self._skip(source, source.label(row, index), bad)
        except TooLongError as error:
            if not self.defer:
                raise
            return SkippedRow(source.label(row, index), "over_limit", source.name, str(error), ends_run=True)
        if encoded.notes:
            self._count("shortened")
        return encoded

    def _skip(self, source: DataSource, label: str, bad: BadRowError) -> SkippedRow:
        skipped = SkippedRow(label, bad.code, source.name, bad.message or CODES[bad.code][1])
        if bad.code == "too_long":  # a choice of the user (on_too_long: drop), so on_bad_row does not apply
            self._count("too_long")
            log.info("row %s dropped: %s", label, bad.message)
        elif self.on_bad_row == "error":
            message = f"row {label}: {bad} (on_bad_row: error; on_bad_row: skip would leave it out)"
            if not self.defer:
                raise ValueError(message) from bad
            return replace(skipped, message=message, ends_run=True)
        else:
            self._count("bad")
            log.warning("row %s skipped: %s", label, bad)
        if not self.defer:
            problem = too_many_unusable(self.counts, self.max_bad_fraction, self.encoder.max_length, skipped)
            if problem is not None:
                raise ValueError(problem)
        return skipped

    def _count(self, kind: str) -> None:
        worker = get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_MAX_WORKERS - 1), _COUNTED.index(kind)] += 1


class RowDataset(Dataset[Encoded | SkippedRow]):
    """Map-style, for sources on disk. Rows are numbered across the sources, as in `DeterministicOrder`."""

    def __init__(self, reader: RowReader) -> None:
        self.reader = reader
        self.sizes = [len(source.rows) for source in reader.sources]
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Encoded | SkippedRow:
        source, index = self.locate(number)
        return self.reader.read(source, source.rows[index], index)

    def locate(self, number: int) -> tuple[DataSource, int]:
        """The source of row `number`, and the row's index in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        at = bisect.bisect_right(self._ends, number)
        return self.reader.sources[at], number - (self._ends[at] - self.sizes[at])


_SHUFFLE_BUFFER = 1000
_READ_BATCH = 64
_INDEX_COLUMN = "__number__"
_StreamedRow = tuple[DataSource, Any, int]  # source, row, its index


class RowStream(IterableDataset[Encoded | SkippedRow]):
    """For streamed sources, in a `DataLoader` with the same `batch_size`. The order is as deterministic as on disk:
    every rank and every loader process reads the same sequence of rows and takes those at its own positions. Sources
    are mixed at the rates of their weights, each to its end; then the next epoch starts. `start` skips positions that
    a run has read, `stop` ends it."""

    def __init__(
        self,
        reader: RowReader,
        weights: Sequence[float],
        batch_size: int,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        buffer: int = _SHUFFLE_BUFFER,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: got {rank}, expected 0 to {world - 1}")
        self.reader, self.weights, self.batch_size = reader, list(weights), batch_size
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.seed, self.buffer = seed, buffer

    def __iter__(self) -> Iterator[Encoded | SkippedRow]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for position, (source, row, index) in enumerate(self._rows()):
            if position >= self.stop:
                return
            batch = (position - self.start) // self.batch_size
            if position >= self.start and batch % self.world == self.rank and batch // self.world % workers == worker:
                yield self.reader.read(source, row, index)

    def _rows(self) -> Iterator[_StreamedRow]:
        """The endless sequence of rows, epoch after epoch."""
        for epoch in itertools.count():
            empty = True
            for item in self._epoch(epoch):
                empty = False
                yield item
            if empty:
                raise ValueError("the data set is empty: none of its sources has a row")

    def _epoch(self, epoch: int) -> Iterator[_StreamedRow]:
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch])))
        sources = self.reader.sources
        unfinished = {i: _shuffled_rows(source, self.seed + epoch, self.buffer) for i, source in enumerate(sources)}
        while unfinished:
            rates = np.array([self.weights[i] for i in unfinished])
            chosen = list(unfinished)[int(random.choice(len(rates), p=rates / rates.sum()))]
            item = next(unfinished[chosen], None)
            if item is None:
                del unfinished[chosen]
            else:
                yield sources[chosen], *item


def _shuffled_rows(source: DataSource, seed: int, buffer: int) -> Iterator[tuple[Any, int]]:
    """(row, its index), shuffled within the buffer. Read with `iter`, which, unlike iterating the data set itself,
    does not silently divide the rows among the loader's processes."""
    rows = source.rows if isinstance(source.rows, Rows) else source.rows.to_iterable_dataset()
    numbered = rows.map(_with_index, with_indices=True)
    for batch in numbered.shuffle(seed=seed, buffer_size=buffer).iter(batch_size=_READ_BATCH):
        for i, index in enumerate(batch.pop(_INDEX_COLUMN)):
            yield {name: values[i] for name, values in batch.items()}, index


def _with_index(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {**row, _INDEX_COLUMN: index}
