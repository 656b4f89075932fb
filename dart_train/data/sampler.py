"""Which row comes when: a pure function of seed, epoch and position.

A run is one line of positions. Position p lies in epoch p // N, so batches run over the epoch's end instead of
padding it, and every row of an epoch is seen once by whatever ranks there are. Where a run stands is one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_POOL = 64  # groups that are sorted together: more is tighter in length, and less shuffled


class DeterministicOrder:
    """Rows are numbered through the sources: `sizes` are their row counts, `weights` how often an epoch shows them
    (0.5: half of the rows, the other half in the next epoch; 2: each row twice). With `lengths` (of every row, in
    tokens that cost), rows are grouped so that `group` of them in a row, one global batch, are of like length."""

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
        self.shown = [round(size * weight) for size, weight in zip(sizes, weights, strict=True)]
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        if not len(self):
            raise ValueError(f"the data set is empty: its sources have {list(sizes)} rows, weighted {list(weights)}")

    def __len__(self) -> int:
        """Rows in an epoch."""
        return sum(self.shown)

    def rows(self, start: int, count: int) -> list[int]:
        """The rows at positions start ... start + count - 1, over epoch ends."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(start + len(found), len(self))
            found += self.epoch(epoch)[offset : offset + count - len(found)].tolist()
        return found

    def epoch(self, epoch: int) -> np.ndarray:
        """[N] row numbers in the order of that epoch."""
        if self._cached[0] != epoch:
            starts = np.cumsum([0, *self.sizes])
            parts = [starts[i] + self._drawn(i, epoch) for i in range(len(self.sizes))]
            self._cached = (epoch, self._grouped(self._mixed(np.concatenate(parts), epoch), epoch))
        return self._cached[1]

    def _drawn(self, source: int, epoch: int) -> np.ndarray:
        """The rows of one source that this epoch shows: its share of an endless line of permutations."""
        size, shown = self.sizes[source], self.shown[source]
        first, last = epoch * shown, (epoch + 1) * shown
        cycles = range(first // size, -(-last // size)) if shown else range(0)
        line = [self._permutation(size, source, cycle) for cycle in cycles]
        skipped = cycles.start * size
        return np.concatenate(line)[first - skipped : last - skipped] if line else np.empty(0, dtype=np.int64)

    def _mixed(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        return rows[self._permutation(len(rows), len(self.sizes), epoch)]

    def _grouped(self, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Like lengths together, groups in random order. A group that the last epoch left unfinished comes first,
        so that groups and global batches stay aligned."""
        if self.lengths is None or self.group == 1:
            return rows
        head = min(-epoch * len(self) % self.group, len(rows))
        pool = self.group * _POOL
        body = [part[np.argsort(-self.lengths[part], kind="stable")] for part in _chunks(rows[head:], pool)]
        groups = [group for part in body for group in _chunks(part, self.group)]
        whole = [group for group in groups if len(group) == self.group]
        order = self._permutation(len(whole), len(self.sizes) + 1, epoch)
        rest = [group for group in groups if len(group) < self.group]
        return np.concatenate([rows[:head], *(whole[i] for i in order), *rest])

    def _permutation(self, size: int, stream: int, cycle: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(size)
        # RandomState, because NumPy promises that its numbers never change; Generator's may, between versions.
        seeds = np.random.SeedSequence([self.seed, stream, cycle])
        return np.random.RandomState(np.random.MT19937(seeds)).permutation(size)


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class RankBatchSampler(Sampler[list[int]]):
    """The batches of one rank, for a `DataLoader`'s `batch_sampler`: already divided among the ranks, so nothing
    may divide them again. A step takes `batch_size * world * accumulation` positions; `start_step` resumes."""

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
            yield self.order.rows((batch * self.world + self.rank) * self.batch_size, self.batch_size)


def steps_for(order: DeterministicOrder, epochs: float, batch_size: int, world: int = 1, accumulation: int = 1) -> int:
    """Optimizer steps that show `epochs` epochs. The last step may reach into the epoch after."""
    return -(-round(len(order) * epochs) // (batch_size * world * accumulation))
