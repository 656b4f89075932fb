"""Sources that are read as they come. The order is as deterministic as on disk: every rank and every loader process
goes through the same line of rows and takes those at its own positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import IterableDataset as Rows
from torch.utils.data import IterableDataset, get_worker_info

from .dataset import Reader, Skipped
from .encode import Encoded
from .sources import Source

_BUFFER = 1000
_READ = 64


class RowStream(IterableDataset[Encoded | Skipped]):
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

    def __iter__(self) -> Iterator[Encoded | Skipped]:
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
