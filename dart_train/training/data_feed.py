"""Loss and accuracy on the validation rows, at several budgets: a checkpoint is never judged at one alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..common.distributed import RankInfo
from ..config import Data, Recipe
from ..data.check import row_lengths
from ..data.collator import Collator
from ..data.dataset import RowDataset, RowReader, RowStream
from ..data.encoder import Encoder
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.sampler import DeterministicOrder, RankBatchSampler, steps_for
from ..data.sources import DataSource, open_sources
from ..reduction.budget import Keep
from .objective import accuracy, tell

if TYPE_CHECKING:
    from .trainer import DartTrainer

# From the recipe's data section to the batches of one rank.


@dataclass
class TrainFeed:
    """The rows of a run, opened, and in which order they come. `order` is None where rows are streamed."""

    recipe: Recipe
    ranks: RankInfo
    reader: RowReader
    collator: Collator
    order: DeterministicOrder | None

    @classmethod
    def open(cls, recipe: Recipe, ranks: RankInfo, processor: Any) -> TrainFeed:
        data = recipe.data
        sources = open_sources(data.train, image_store(data))
        encoder = Encoder(processor, data.max_length, data.on_too_long)
        reader = RowReader(sources, encoder, data.on_bad_row, data.max_bad_fraction)
        collator = Collator(processor, data.pad_to_multiple_of)
        return cls(recipe, ranks, reader, collator, _order(recipe, ranks, sources, encoder))

    @property
    def rows_per_step(self) -> int:
        train = self.recipe.train
        return train.per_device_batch_size * self.ranks.world * train.gradient_accumulation_steps

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        train = self.recipe.train
        if train.max_steps is not None:
            return train.max_steps
        assert self.order is not None and train.epochs is not None
        shape = train.per_device_batch_size, self.ranks.world, train.gradient_accumulation_steps
        return max(1, steps_for(self.order, train.epochs, *shape))

    def epoch(self, step: int) -> float | None:
        """Passes over the data that `step` steps have made."""
        return None if self.order is None else step * self.rows_per_step / len(self.order)

    def row_ids(self, step: int, micro: int) -> list[str]:
        """The rows of this rank in forward `micro` of optimizer step `step` (0 is the first)."""
        train = self.recipe.train
        batch = (step * train.gradient_accumulation_steps + micro) * self.ranks.world + self.ranks.rank
        first = batch * train.per_device_batch_size
        if self.order is None:
            return [f"position {first + i} of the stream" for i in range(train.per_device_batch_size)]
        rows = RowDataset(self.reader)
        return [_name(*rows.locate(row)) for row in self.order.rows(first, train.per_device_batch_size)]

    def loader(self, start_step: int) -> DataLoader[Any]:
        """This rank's batches from `start_step` on; nothing may divide them again."""
        train = self.recipe.train
        if self.order is None:
            return _loader(self._stream(start_step), self, batch_size=train.per_device_batch_size)
        shape = train.per_device_batch_size, self.steps, self.ranks.rank, self.ranks.world
        batches = RankBatchSampler(self.order, *shape, train.gradient_accumulation_steps, start_step)
        return _loader(RowDataset(self.reader), self, batch_sampler=batches)

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


def image_store(data: Data) -> ImageStore:
    return ImageStore(None, data.allow_urls, data.max_pixels, data.min_pixels)


def _name(source: DataSource, index: int) -> str:
    """The id that the row gives itself, else its place."""
    place = source.row_id(index)
    try:
        return str(source.sample(source.rows[index], index).label(place))
    except BadRowError:
        return place


def _order(
    recipe: Recipe, ranks: RankInfo, sources: Sequence[DataSource], encoder: Encoder
) -> DeterministicOrder | None:
    data, train = recipe.data, recipe.train
    if any(source.streaming for source in data.train):
        return None
    # All rows of a step: they are then the same, however many ranks and forwards divide them.
    lengths, group = None, train.per_device_batch_size * ranks.world * train.gradient_accumulation_steps
    if data.group_by_length:
        lengths = row_lengths(sources, encoder, recipe.reduction.reducers())
    sizes, weights = [len(source.rows) for source in sources], [source.weight for source in data.train]
    return DeterministicOrder(sizes, weights, data.seed, lengths, group)


def _loader(dataset: Dataset[Any], feed: TrainFeed, **how: Any) -> DataLoader[Any]:
    workers = feed.recipe.data.workers
    return DataLoader(
        dataset,
        collate_fn=feed.collator,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting a loader must not move the generator that dropout draws from.
        generator=torch.Generator(),
        multiprocessing_context="fork" if workers else None,
        **how,
    )


@dataclass
class Validation:
    """`batches`: those of this rank, as many as any other rank has; an empty one still takes part."""

    budgets: dict[str, tuple[Keep, ...] | None]  # suffix of the metrics: a budget for each stage
    batches: DataLoader[Any]

    @classmethod
    def open(cls, recipe: Recipe, ranks: RankInfo, processor: Any) -> Validation | None:
        data = recipe.data
        if not data.validation:
            return None
        if any(source.streaming for source in data.validation):
            raise ValueError("data.validation: streaming is for training rows; leave it out here")
        sources = open_sources(data.validation, image_store(data))
        encoder = Encoder(processor, data.max_length, data.on_too_long)
        rows = RowDataset(RowReader(sources, encoder, data.on_bad_row, data.max_bad_fraction))
        if not len(rows):
            raise ValueError("data.validation: the data set is empty")
        mine = _divided(len(rows), recipe.train.per_device_eval_batch_size, ranks)
        collator = Collator(processor, data.pad_to_multiple_of)
        return cls(_budgets(recipe), DataLoader(rows, batch_sampler=mine, collate_fn=collator))

    def judge(self, model: Any, trainer: DartTrainer) -> dict[str, float]:
        """`eval_loss` and `eval_accuracy` are those at the budget that is served; the others carry theirs."""
        model.eval()
        found: dict[str, float] = {}
        for suffix, keep in self.budgets.items():
            loss, right = self._at(model, trainer, keep)
            found |= {f"eval_loss{suffix}": loss, f"eval_accuracy{suffix}": right}
        model.train()
        return found

    @torch.no_grad()
    def _at(self, model: Any, trainer: DartTrainer, keep: tuple[Keep, ...] | None) -> tuple[float, float]:
        sums = torch.zeros(3)
        with trainer.budgets.set_to(*(keep or ())):
            for host in self.batches:
                trainer.beat()
                told = tell(model, trainer.attached, trainer._prepare_inputs(dict(host)), host)
                sums += torch.tensor([float(told.loss()), accuracy(told), told.targets.numel()])
        loss, right, targets = trainer.accelerator.reduce(sums.to(trainer.args.device), "sum").tolist()
        return loss / max(targets, 1), right / max(targets, 1)


def _divided(rows: int, size: int, ranks: RankInfo) -> list[list[int]]:
    batches = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    batches += [[]] * (-len(batches) % ranks.world)
    return batches[ranks.rank :: ranks.world]


def _budgets(recipe: Recipe) -> dict[str, tuple[Keep, ...] | None]:
    reducers = recipe.reduction.reducers()
    if not reducers:
        return {"": None}
    found: dict[str, tuple[Keep, ...] | None] = {"": tuple(reducer.keep for reducer in reducers)}
    for keep in recipe.train.eval_budgets if len(reducers) == 1 else (1.0,):
        found[f"_at_{'full' if keep == 1.0 and isinstance(keep, float) else f'{keep:g}'}"] = (keep,) * len(reducers)
    return found
