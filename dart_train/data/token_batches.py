"""Micro-batches filled by tokens: which rows each of them has, a pure function of seed, epoch and number.

A run is one sequence of micro-batches. How they are divided among ranks and forwards does not change them, so that a
step has the same rows wherever the number of ranks times the forwards of a step is the same. To resume, one number is
enough."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from .sampler import DeterministicOrder, RankBatchSampler, seeded_permutation

_POOL = 1024  # rows that micro-batches are filled from: more fills them better, and shuffles less


class TokenBatches:
    """lengths: of every row, what it counts; a micro-batch counts at most `tokens`, or is one row that alone counts
    more. `order` is not grouped."""

    def __init__(self, order: DeterministicOrder, lengths: Sequence[float] | np.ndarray, tokens: int) -> None:
        if tokens < 1:
            raise ValueError(f"tokens: got {tokens}, expected at least 1")
        self.order, self.lengths, self.tokens = order, np.asarray(lengths, dtype=np.float64), tokens
        self._first = [0]  # the number of the first micro-batch of each epoch that was looked at, and of the next
        self._cached: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, number: int) -> list[int]:
        """The rows of micro-batch `number`, across epochs."""
        epoch = self._epoch_of(number)
        return self.epoch(epoch)[number - self._first[epoch]]

    def epoch(self, epoch: int) -> list[list[int]]:
        """The micro-batches of an epoch, in their order."""
        if self._cached[0] != epoch:
            rows = self.order.epoch(epoch)
            filled = [
                batch
                for pool, start in enumerate(range(0, len(rows), _POOL))
                for batch in self._fill(rows[start : start + _POOL], epoch, pool)
            ]
            self._cached = (epoch, filled)
        return self._cached[1]

    def number_for(self, epochs: float) -> int:
        """Micro-batches in `epochs` epochs; of a part of one, as many as its rows need at the mean of that epoch."""
        complete = int(epochs)
        self._count(complete)
        part = epochs - complete
        return self._first[complete] + (round(part * len(self.epoch(complete))) if part else 0)

    def epochs_in(self, number: int) -> float:
        """Passes over the data in the first `number` micro-batches."""
        epoch = self._epoch_of(number)
        rows = sum(map(len, self.epoch(epoch)[: number - self._first[epoch]]))
        return epoch + rows / len(self.order)

    def _epoch_of(self, number: int) -> int:
        while self._first[-1] <= number:
            self._count(len(self._first))
        return bisect_left(self._first, number + 1) - 1

    def _count(self, epochs: int) -> None:
        for epoch in range(len(self._first) - 1, epochs):
            self._first.append(self._first[-1] + len(self.epoch(epoch)))

    def _fill(self, rows: np.ndarray, epoch: int, pool: int) -> list[list[int]]:
        """Best fit, the longest row first: each row goes where it leaves the least room. Then in random order."""
        room: list[tuple[float, int]] = []  # (what is left, micro-batch), sorted
        batches: list[list[int]] = []
        for row in rows[np.argsort(-self.lengths[rows], kind="stable")].tolist():
            at = bisect_left(room, (self.lengths[row], -1))
            if at < len(room):
                left, number = room.pop(at)
            else:
                left, number = float(self.tokens), len(batches)
                batches.append([])
            batches[number].append(row)
            insort(room, (left - self.lengths[row], number))
        shuffled = self.order.shuffle
        order = seeded_permutation(len(batches), self.order.seed, epoch, pool) if shuffled else range(len(batches))
        return [batches[number] for number in order]


class RankTokenSampler(RankBatchSampler):
    """The micro-batches of one rank. A step has `world * accumulation` of them."""

    def __init__(
        self,
        batches: TokenBatches,
        steps: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        start_step: int = 0,
    ) -> None:
        super().__init__(batches.order, 1, steps, rank, world, accumulation, start_step)
        self.batches = batches

    def rows_of(self, number: int) -> list[int]:
        return self.batches.batch(number)
