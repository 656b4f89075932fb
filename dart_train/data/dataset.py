"""What a `DataLoader` reads: rows opened, checked and encoded when they are asked for. A bad row is skipped, logged
by its id and counted, or ends the run; it is replaced by nothing, so no other row moves to another place."""

from __future__ import annotations

import bisect
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset as Rows
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .encoder import Encoded, Encoder
from .issues import BadRowError
from .sources import Source

log = logging.getLogger(__name__)
_SLOTS = 256  # loader processes that may count at once
_KINDS = ("rows", "bad", "too_long", "shortened")
_FIRST = 100  # rows before which the fraction of bad ones says little


@dataclass(frozen=True)
class SkippedRow:
    """Stands where a bad row was; the collator leaves it out."""

    id: str
    code: str


class Reader:
    """One row of one source -> `Encoded` or `SkippedRow`. Counts are shared with the loader's processes."""

    def __init__(
        self, sources: Sequence[Source], encoder: Encoder, on_bad_row: str = "skip", max_bad_fraction: float = 0.05
    ) -> None:
        if on_bad_row not in ("skip", "error"):
            raise ValueError(f"on_bad_row: got {on_bad_row!r}, expected skip or error")
        self.sources, self.encoder = list(sources), encoder
        self.on_bad_row, self.max_bad_fraction = on_bad_row, max_bad_fraction
        self._counts = torch.zeros(_SLOTS, len(_KINDS), dtype=torch.int64).share_memory_()

    @property
    def counts(self) -> dict[str, int]:
        """Rows read (ahead of the model, as loaders do); of them bad and skipped, dropped for their length,
        shortened to max_length."""
        return dict(zip(_KINDS, self._counts.sum(0).tolist(), strict=True))

    def read(self, source: Source, row: Any, index: int) -> Encoded | SkippedRow:
        self._count("rows")
        row_id = source.row_id(index)
        try:
            sample = source.sample(row, index)
            row_id = sample.named(row_id)
            encoded = self.encoder.encode(sample, [source.store.open(ref) for ref in sample.images])
        except BadRowError as bad:
            return self._skip(row_id, bad)
        if encoded.notes:
            self._count("shortened")
        return encoded

    def _skip(self, row_id: str, bad: BadRowError) -> SkippedRow:
        if bad.code == "too_long":  # the user's choice, not a fault of the data
            self._count("too_long")
            log.info("row %s dropped: %s", row_id, bad.message)
            return SkippedRow(row_id, bad.code)
        if self.on_bad_row == "error":
            raise ValueError(f"row {row_id}: {bad} (on_bad_row: error; skip would go on without it)") from bad
        self._count("bad")
        log.warning("row %s skipped: %s", row_id, bad)
        counts = self.counts
        if counts["bad"] > self.max_bad_fraction * max(counts["rows"], _FIRST):
            raise ValueError(
                f"{counts['bad']} of {counts['rows']} rows are bad, more than max_bad_fraction "
                f"{self.max_bad_fraction}; the last one is {row_id}: {bad}. "
                "Look at all of them: python -m dart_train data check RECIPE"
            )
        return SkippedRow(row_id, bad.code)

    def _count(self, kind: str) -> None:
        worker = get_worker_info()
        self._counts[0 if worker is None else 1 + worker.id % (_SLOTS - 1), _KINDS.index(kind)] += 1


class RowDataset(Dataset[Encoded | SkippedRow]):
    """Map-style, for sources that are on disk. Row numbers run through the sources, as in `DeterministicOrder`."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.sizes = [len(source.rows) for source in reader.sources]
        self._ends = list(itertools.accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Encoded | SkippedRow:
        source, index = self.locate(number)
        return self.reader.read(source, source.rows[index], index)

    def locate(self, number: int) -> tuple[Source, int]:
        """The source that row `number` lies in, and its place there."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        at = bisect.bisect_right(self._ends, number)
        return self.reader.sources[at], number - (self._ends[at] - self.sizes[at])


# Sources that are read as they come. The order is as deterministic as on disk: every rank and every loader process
# goes through the same line of rows and takes those at its own positions.

_BUFFER = 1000
_READ = 64


class RowStream(IterableDataset[Encoded | SkippedRow]):
    """For a `DataLoader` with the same `batch_size`. Sources are mixed at the rates of their weights, each to its
    end; then the next epoch begins. `start` skips what a run has seen, `stop` ends it, both in positions."""

    def __init__(
        self,
        reader: Reader,
        weights: Sequence[float],
        batch_size: int,
        stop: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        buffer: int = _BUFFER,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: got {rank}, expected 0 to {world - 1}")
        self.reader, self.weights, self.batch_size = reader, list(weights), batch_size
        self.start, self.stop, self.rank, self.world = start, stop, rank, world
        self.seed, self.buffer = seed, buffer

    def __iter__(self) -> Iterator[Encoded | SkippedRow]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for position, (source, row, index) in enumerate(self._line()):
            if position >= self.stop:
                return
            batch = (position - self.start) // self.batch_size
            if position >= self.start and batch % self.world == self.rank and batch // self.world % workers == mine:
                yield self.reader.read(source, row, index)

    def _line(self) -> Iterator[tuple[Source, Any, int]]:
        epoch = 0
        while True:
            empty = True
            for item in self._epoch(epoch):
                empty = False
                yield item
            if empty:
                raise ValueError("the data set is empty: none of its sources gives a row")
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[tuple[Source, Any, int]]:
        draw = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([self.seed, epoch])))
        sources = self.reader.sources
        live = {i: _rows(source, self.seed + epoch, self.buffer) for i, source in enumerate(sources)}
        while live:
            rates = np.array([self.weights[i] for i in live])
            at = list(live)[int(draw.choice(len(rates), p=rates / rates.sum()))]
            item = next(live[at], None)
            if item is None:
                del live[at]
            else:
                yield sources[at], *item


def _rows(source: Source, seed: int, buffer: int) -> Iterator[tuple[Any, int]]:
    """(row, its number) shuffled within the buffer. Read by `iter`, which, unlike iterating the data set itself,
    does not divide the rows among the loader's processes behind our back."""
    rows = source.rows if isinstance(source.rows, Rows) else source.rows.to_iterable_dataset()
    numbered = rows.map(_with_number, with_indices=True)
    for batch in numbered.shuffle(seed=seed, buffer_size=buffer).iter(batch_size=_READ):
        for i, number in enumerate(batch.pop(_NUMBER)):
            yield {name: values[i] for name, values in batch.items()}, number


_NUMBER = "__number__"


def _with_number(row: dict[str, Any], index: int) -> dict[str, Any]:
    return {**row, _NUMBER: index}
