"""From the recipe's data section to the batches of one rank."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.distributed import RankInfo
from ..config import Recipe
from ..data.collator import Collator
from ..data.dataset import RowDataset, RowReader, RowStream, SkippedRow
from ..data.encoder import Encoded, Encoder
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.packing_collator import PackingCollator
from ..data.sampler import DeterministicOrder, RankBatchSampler, steps_for
from ..data.sources import DataSource, open_sources
from ..data.survey import Survey, is_surveyed, sample_dropped_rows, survey_rows
from ..data.token_batches import RankTokenSampler, TokenBatches

SKIPPED_ROWS = "skipped_rows"
ROWS_READ = "rows_read"
SAMPLED_ROWS = 256  # of which the share of unusable rows is measured before the first step


@dataclass
class TrainFeed:
    """The training rows of a run and their order. `order` is None where rows are streamed. `surveyed`: rows that are
    known to be unusable, `left_out`, are not in it."""

    recipe: Recipe
    ranks: RankInfo
    reader: RowReader
    collator: Collator
    order: DeterministicOrder | None
    surveyed: bool = False
    left_out: Sequence[SkippedRow] = ()
    batches: TokenBatches | None = None  # where micro-batches are filled by tokens

    @classmethod
    def open(
        cls, recipe: Recipe, ranks: RankInfo, processor: Any, surveyed: bool | None = None, layers: int | None = None
    ) -> TrainFeed:
        """surveyed: as in the run that is resumed; None: a new run. layers: of the decoder, to fill micro-batches by
        tokens."""
        data = recipe.data
        sources = open_sources(data.train, ImageStore.from_config(data).leave_limits_to(processor), data.turns)
        encoder = Encoder(processor, data.max_length, data.on_too_long)
        reader = RowReader(sources, encoder, data.on_bad_row, data.max_bad_fraction, defer=True)
        padded = Collator(processor, data.pad_to_multiple_of) if not recipe.train.padding_free else None
        collator = padded or PackingCollator(processor)
        if surveyed is None:
            surveyed = _surveys(recipe, ranks, sources, encoder)
        order, survey = _order(recipe, ranks, sources, encoder, surveyed, layers)
        left_out, batches = [] if survey is None else survey.skipped, None
        if recipe.train.tokens_per_batch is not None and order is not None and survey is not None:
            if survey.mean_lengths is None:
                raise ValueError("train.tokens_per_batch: the number of the decoder's layers is not known")
            batches = TokenBatches(order, survey.mean_lengths, recipe.train.tokens_per_batch)
        return cls(recipe, ranks, reader, collator, order, surveyed, left_out, batches)

    @property
    def forwards_per_step(self) -> int:
        """Micro-batches of all ranks."""
        return self.ranks.world * self.recipe.train.gradient_accumulation_steps

    @property
    def rows_per_step(self) -> int:
        """Where micro-batches are filled by tokens: about as many, the mean of the first epoch."""
        if self.batches is not None and self.order is not None:
            return max(1, round(len(self.order) * self.forwards_per_step / self.batches.number_for(1)))
        return self.recipe.train.per_device_batch_size * self.forwards_per_step

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        train = self.recipe.train
        if train.max_steps is not None:
            return train.max_steps
        assert self.order is not None and train.epochs is not None
        if self.batches is not None:
            return max(1, -(-self.batches.number_for(train.epochs) // self.forwards_per_step))
        shape = train.per_device_batch_size, self.ranks.world, train.gradient_accumulation_steps
        return max(1, steps_for(self.order, train.epochs, *shape))

    def epoch(self, step: int) -> float | None:
        """Passes over the data after `step` steps; None where rows are streamed."""
        if self.batches is not None:
            return self.batches.epochs_in(step * self.forwards_per_step)
        return None if self.order is None else step * self.rows_per_step / len(self.order)

    def fingerprint(self) -> dict[str, Any]:
        """What the order of rows depends on, other than the recipe: equal on all ranks, and in a resumed run."""
        if self.order is None:
            return {"rows": None, "surveyed": False}
        lengths = self.order.lengths
        digest = None if lengths is None else hashlib.blake2b(lengths.tobytes(), digest_size=16).hexdigest()
        left_out = 0 if lengths is None else int((lengths == 0).sum())
        found = {"rows": self.order.sizes, "surveyed": self.surveyed, "left_out": left_out, "lengths": digest}
        if self.batches is not None:
            found["counted"] = hashlib.blake2b(self.batches.lengths.tobytes(), digest_size=16).hexdigest()
        return found

    def row_ids(self, step: int, micro: int) -> list[str]:
        """The rows of this rank in forward `micro` of optimizer step `step` (0 is the first), by name."""
        train = self.recipe.train
        batch = (step * train.gradient_accumulation_steps + micro) * self.ranks.world + self.ranks.rank
        first = batch * train.per_device_batch_size
        if self.order is None:
            return [f"position {first + i} of the stream" for i in range(train.per_device_batch_size)]
        rows, size = RowDataset(self.reader), train.per_device_batch_size
        numbers = self.order.rows(first, size) if self.batches is None else self.batches.batch(batch)
        return [_row_id(*rows.locate(row)) for row in numbers]

    def loader(self, start_step: int) -> DataLoader[Any]:
        """This rank's batches from `start_step` on. They are already divided among the ranks."""
        train = self.recipe.train
        if self.order is None:
            return _loader(self._stream(start_step), self, batch_size=train.per_device_batch_size)
        shape = self.steps, self.ranks.rank, self.ranks.world, train.gradient_accumulation_steps, start_step
        if self.batches is not None:
            return _loader(RowDataset(self.reader), self, batch_sampler=RankTokenSampler(self.batches, *shape))
        batches = RankBatchSampler(self.order, train.per_device_batch_size, *shape)
        return _loader(RowDataset(self.reader), self, batch_sampler=batches)

    def collate(self, rows: Sequence[Encoded | SkippedRow]) -> dict[str, Any]:
        """A batch, and what the trainer takes out of it: the number of rows that were read for it, and those of them
        that are not in it."""
        skipped = [row for row in rows if isinstance(row, SkippedRow)]
        return {**self.collator(rows), ROWS_READ: len(rows), SKIPPED_ROWS: skipped}

    def _stream(self, start_step: int) -> RowStream:
        per_step = self.rows_per_step
        return RowStream(
            self.reader,
            [source.weight for source in self.recipe.data.train],
            self.recipe.train.per_device_batch_size,
            stop=self.steps * per_step,
            start=start_step * per_step,
            rank=self.ranks.rank,
            world=self.ranks.world,
            seed=self.recipe.data.seed,
        )


def _row_id(source: DataSource, index: int) -> str:
    """The id in the row, or its position in the source."""
    position = source.row_id(index)
    try:
        return str(source.sample(source.rows[index], index).label(position))
    except BadRowError:
        return position


def _surveys(recipe: Recipe, ranks: RankInfo, sources: Sequence[DataSource], encoder: Encoder) -> bool:
    """Whether a new run leaves out the rows that cannot be used: where lengths are needed in any case, or where they
    are known from an earlier run on this machine."""
    if any(source.streaming for source in recipe.data.train):
        return False
    if recipe.train.tokens_per_batch is not None:
        return True
    return recipe.data.groups_by_length or (ranks.world == ranks.local_world and is_surveyed(sources, encoder))


def _order(
    recipe: Recipe,
    ranks: RankInfo,
    sources: Sequence[DataSource],
    encoder: Encoder,
    surveyed: bool,
    layers: int | None = None,
) -> tuple[DeterministicOrder | None, Survey | None]:
    """The order, and what is known of the rows: some are left out of it."""
    data, train = recipe.data, recipe.train
    if any(source.streaming for source in data.train):
        return None, None
    # All rows of a step, so that a step has the same rows whatever the number of ranks and forwards.
    survey = None
    lengths, group = None, train.per_device_batch_size * ranks.world * train.gradient_accumulation_steps
    if surveyed:
        survey = survey_rows(sources, encoder, recipe.reduction.reducers(), layers=layers)
        survey.check(data.max_bad_fraction, data.on_bad_row)
        grouped = data.groups_by_length and train.tokens_per_batch is None
        lengths, group = (survey.lengths, group) if grouped else (survey.usable, 1)
    elif not data.allow_urls:  # the size of an image would be a download
        sample_dropped_rows(sources, encoder, SAMPLED_ROWS).check(data.max_bad_fraction)
    sizes, weights = [len(source.rows) for source in sources], [source.weight for source in data.train]
    return DeterministicOrder(sizes, weights, data.seed, lengths, group), survey


def leave_signals_to_the_rank(worker: int) -> None:
    """In a process of a loader: a request to stop (Ctrl-C, SIGTERM from a scheduler or from the launcher) reaches all
    processes, and the rank needs the rows of its last step. SIGTERM from the rank itself ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, name="sigterm-watch", daemon=True).start()


def _loader(dataset: Dataset[Any], feed: TrainFeed, **options: Any) -> DataLoader[Any]:
    workers = feed.recipe.data.workers
    return DataLoader(
        dataset,
        collate_fn=feed.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting a loader must not advance the one that dropout draws from.
        generator=torch.Generator(),
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=leave_signals_to_the_rank,
        **options,
    )
