"""Which row is read when: a pure function of seed, epoch and position.

A run is one sequence of positions. Position p belongs to epoch p // N, so batches cross the end of an epoch instead
of padding it, and every row of an epoch is read once, however many ranks there are. To resume, one number is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_POOL = 64  # groups that are sorted together: more gives closer lengths and less shuffling


class DeterministicOrder:
    """Rows are numbered across the sources: `sizes` are their row counts, `weights` how often an epoch reads them
    (0.5: half of the rows, the other half in the next epoch; 2: each row twice). With `lengths` (of every row, in
    tokens that it costs), rows are grouped so that `group` consecutive rows, one global batch, have similar lengths,
    and rows of length 0, which are known to be unusable, are left out."""

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        lengths: Sequence[int] | np.ndarray | None = None,
        group: int = 1,
        shuffle: bool = True,
    ) -> None:
        weights = [1.0] * len(sizes) if weights is None else weights
        if len(weights) != len(sizes) or any(weight <= 0 for weight in weights):
            raise ValueError(
                f"weights: got {list(weights)}; expected one positive number for each of {len(sizes)} sources"
            )
        if lengths is not None and len(lengths) != sum(sizes):
            raise ValueError(f"lengths: got {len(lengths)} for {sum(sizes)} rows")
        self.sizes, self.seed, self.shuffle, self.group = list(sizes), seed, shuffle, max(1, group)
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._usable = _usable_rows(self.sizes, self.lengths)
        self._shown = [round(len(rows) * weight) for rows, weight in zip(self._usable, weights, strict=True)]
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        if not len(self):
            unusable = "" if self.lengths is None else f", {int((self.lengths == 0).sum())} of them unusable"
            raise ValueError(
                f"the data set is empty: its sources have {list(sizes)} rows, weighted {list(weights)}{unusable}"
            )

    def __len__(self) -> int:
        """Rows in an epoch."""
        return sum(self._shown)

    def rows(self, start: int, count: int) -> list[int]:
        """The rows at positions start ... start + count - 1, across epochs."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), len(self))
            found += self.epoch(epoch)[offset : offset + count - len(found)].tolist()
        return found

    def epoch(self, epoch: int) -> np.ndarray:
        """[N] row numbers in the order of that epoch."""
        if self._cached[0] != epoch:
            rows = np.concatenate([self._source_share(i, epoch) for i in range(len(self.sizes))])
            self._cached = (epoch, self._grouped(self._shuffled(rows, epoch), epoch))
        return self._cached[1]

    def _source_share(self, source: int, epoch: int) -> np.ndarray:
        """The rows of one source in this epoch: its share of an endless sequence of permutations."""
        usable, shown = self._usable[source], self._shown[source]
        if not shown:
            return usable[:0]
        size, first, last = len(usable), epoch * shown, (epoch + 1) * shown
        cycles = range(first // size, -(-last // size))
        sequence = np.concatenate([self._permutation(size, source, cycle) for cycle in cycles])
        skipped = cycles.start * size
        return usable[sequence[first - skipped : last - skipped]]

    def _shuffled(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return rows[self._permutation(len(rows), len(self.sizes), epoch)]

    def _grouped(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Similar lengths together, groups in random order. A group that the last epoch left incomplete comes first,
        so that groups and global batches remain aligned."""
        if self.lengths is None or self.group == 1:
            return rows
        head = min(-epoch * len(self) % self.group, len(rows))
        pool = self.group * _POOL
        body = [part[np.argsort(-self.lengths[part], kind="stable")] for part in _chunks(rows[head:], pool)]
        groups = [group for part in body for group in _chunks(part, self.group)]
        complete = [group for group in groups if len(group) == self.group]
        order = self._permutation(len(complete), len(self.sizes) + 1, epoch)
        rest = [group for group in groups if len(group) < self.group]
        return np.concatenate([rows[:head], *(complete[i] for i in order), *rest])

    def _permutation(self, size: int, stream: int, cycle: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size)
        return seeded_permutation(size, self.seed, stream, cycle)


def seeded_permutation(size: int, *seeds: int) -> np.ndarray:
    """[size] the same on every machine."""
    # RandomState, because NumPy guarantees that its numbers never change; Generator's may change with a version.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(list(seeds)))).permutation(size)


def _usable_rows(sizes: Sequence[int], lengths: np.ndarray | None) -> list[np.ndarray]:
    """The row numbers of each source, without those of length 0."""
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return rows if lengths is None else [part[lengths[part] > 0] for part in rows]


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class RankBatchSampler(Sampler[list[int]]):
    """The batches of one rank, for a `DataLoader`'s `batch_sampler`: already divided among the ranks, so they must
    not be divided again. A step reads `batch_size * world * accumulation` positions; `start_step` resumes."""

    def __init__(
        self,
        order: DeterministicOrder,
        batch_size: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank: got {rank}, expected 0 to {world - 1}")
        self.order, self.batch_size, self.rank, self.world = order, batch_size, rank, world
        self.first, self.last = start_step * accumulation, steps * accumulation

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.first, self.last):
            yield self.rows_of(batch * self.world + self.rank)

    def rows_of(self, number: int) -> list[int]:
        """The rows of micro-batch `number` of the run, of all ranks."""
        return self.order.rows(number * self.batch_size, self.batch_size)


def steps_for(order: DeterministicOrder, epochs: float, batch_size: int, world: int = 1, accumulation: int = 1) -> int:
    """Optimizer steps for `epochs` epochs. The last step may reach into the next epoch."""
    return -(-round(len(order) * epochs) // (batch_size * world * accumulation))
