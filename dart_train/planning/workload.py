"""What a run has to compute, in tokens: rows read once (images by their size alone), micro-batches at any budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..config import Recipe
from ..data.check_report import DroppedRows
from ..data.collator import Collator
from ..data.encoder import Encoder
from ..data.images import ImageStore
from ..data.issues import BadRowError
from ..data.sampler import DeterministicOrder
from ..data.sources import DataSource, open_sources
from ..data.supervision import LOSS_WEIGHTS
from ..data.videos import media_shape, open_media
from ..models.resize import resulting_size
from ..reduction import FewerPixels, Reducer, count_kept_by_stage
from .pairs import NOT_GRPO, measure_pair
from .rows import PlannedRow, RowLocation


@dataclass(frozen=True)
class PlannedRows:
    """rows: those that were read, source after source, `counts` of each; totals: all rows of each source, None if one
    is streamed. answers: how many of `rows` a row of the data is, 2 for pairs."""

    rows: tuple[PlannedRow, ...]
    counts: tuple[int, ...]
    totals: tuple[int, ...] | None
    encoder: Encoder
    answers: int = 1

    @property
    def text(self) -> np.ndarray:
        return np.array([row.text for row in self.rows])

    @property
    def visual(self) -> np.ndarray:
        return np.array([sum(row.visual) for row in self.rows])

    @property
    def targets(self) -> np.ndarray:
        return np.array([row.targets for row in self.rows])

    def sources(self) -> list[DataSource]:
        """Each once, in the order of the rows."""
        return list({id(row.location.source): row.location.source for row in self.rows}.values())

    def kept(self, *stages: Reducer) -> np.ndarray:
        """[stages, rows] visual tokens that each stage keeps."""
        return np.array([self._kept(row, stages) for row in self.rows]).T

    def _kept(self, row: PlannedRow, stages: Sequence[Reducer]) -> list[int]:
        if isinstance(stages[0], FewerPixels):
            made = [
                resulting_size(self.encoder.processor, stages[0].keep, height, width) for width, height in row.sizes
            ]
            return [sum(size.tokens for size in made)] * len(stages)
        return count_kept_by_stage(stages, row.visual, row.answer_starts, row.prompt_tokens_after)

    def order(self, recipe: Recipe, sizes: Sequence[int], group: int = 1) -> DeterministicOrder:
        """The training order of `sizes` rows of each source; grouped by length only if these are the rows read."""
        weights = [source.weight for source in recipe.data.train]
        lengths = None
        if recipe.data.groups_by_length and tuple(sizes) == self.counts and self.answers == 1:
            reducers = recipe.reduction.reducers()
            lengths = self.text + (self.kept(*reducers)[-1] if reducers else self.visual)
        return DeterministicOrder(sizes, weights, recipe.data.seed, lengths, group)

    def encode(
        self, numbers: Sequence[int], recipe: Recipe, dtype: torch.dtype, device: torch.device
    ) -> dict[str, Tensor]:
        """One batch of these rows on the device, as the model takes it, without labels."""
        encoded = []
        for number in numbers:
            location = self.rows[number].location
            sample = location.sample()
            media = [open_media(location.source.store, ref) for ref in sample.media]
            encoded.append(self.encoder.encode(sample, media))
        batch = Collator(self.encoder.processor, recipe.data.pad_to_multiple_of)(encoded)
        for name in ("labels", LOSS_WEIGHTS):
            batch.pop(name, None)
        return {name: t.to(device, dtype if t.is_floating_point() else None) for name, t in batch.items()}


def read_rows(recipe: Recipe, encoder: Encoder, limit: int = 0) -> PlannedRows:
    """At most about `limit` rows, evenly spaced, as many of each source as its share of all; 0: every row."""
    data = recipe.data
    if recipe.train.tokens_per_batch is not None:
        raise ValueError(
            "train.tokens_per_batch: a plan is one of batches with a fixed number of rows. Plan with "
            "train.tokens_per_batch=null train.per_device_batch_size=N"
        )
    if recipe.train.method == "grpo":
        raise ValueError(NOT_GRPO)
    pairs = recipe.train.method == "dpo"
    store, turns = ImageStore.from_config(data).leave_limits_to(encoder.processor), data.turns
    sources = open_sources(data.train, store, "together" if pairs else turns)
    totals = None if any(source.streaming for source in data.train) else tuple(len(s.rows) for s in sources)
    step = max(1, -(-sum(totals) // limit)) if totals and limit else 1
    measure = partial(measure_pair, encoder, data.max_length) if pairs else partial(_measure_row, encoder)
    found = [[row for each in _spaced(source, step, limit) for row in measure(*each)] for source in sources]
    answers = 2 if pairs else 1
    counts = tuple(len(part) // answers for part in found)
    rows = PlannedRows(tuple(row for part in found for row in part), counts, totals, encoder, answers)
    dropped = DroppedRows(sampled=rows.counts != totals)
    for row in rows.rows[::answers]:
        dropped.add(row.location.source.row_id(row.location.index), row.fault)
    dropped.check(data.max_bad_fraction)
    if all(row.dropped for row in rows.rows):
        raise ValueError(
            f"data.train: none of the {len(rows.rows)} rows looked at can be used; to see what is wrong with them: "
            "python -m dart_train data check RECIPE"
        )
    return rows


def _spaced(source: DataSource, step: int, limit: int) -> Iterator[tuple[RowLocation, Any]]:
    rows = source.rows
    if not isinstance(rows, Dataset):
        yield from ((RowLocation(source, i), row) for i, row in enumerate(islice(rows, limit or None)))
        return
    for index in range(step // 2 if step // 2 < len(rows) else 0, len(rows), step):
        yield RowLocation(source, index), rows[index]


def _measure_row(encoder: Encoder, location: RowLocation, row: Any) -> Sequence[PlannedRow]:
    store = location.source.store
    try:
        sample = location.source.sample(row, location.index)
        shapes = tuple(media_shape(store, ref) for ref in sample.media)
        length = encoder.measure(sample, shapes)
        sizes = tuple(shape for shape in shapes if isinstance(shape, tuple))
        if not length.used:
            return [PlannedRow(location, fault=length.note)]
        text = length.used - sum(length.visual)
        targets = min(text, encoder.count_targets(sample))
        after = length.prompt_tokens_after
        return [PlannedRow(location, text, length.visual, length.answer_starts, after, targets, sizes)]
    except BadRowError as bad:
        return [PlannedRow(location, fault=bad.issue)]


def micro_batches(rows: PlannedRows, recipe: Recipe, ranks: int) -> np.ndarray:
    """[n, rows of a micro-batch] numbers of rows in the order of training; n is a multiple of `ranks`. Pairs count as
    one row in the recipe, and as two here."""
    train = recipe.train
    size = train.per_device_batch_size * ranks
    order = rows.order(recipe, rows.counts, size * train.gradient_accumulation_steps)
    number = max(1, len(order) // size)
    drawn = np.array(order.rows(0, number * size)).reshape(number * ranks, train.per_device_batch_size)
    both = drawn[..., None] * rows.answers + np.arange(rows.answers)
    return both.reshape(number * ranks, -1)


@dataclass(frozen=True)
class StepWorkload:
    """What every micro-batch computes at one budget: arrays [n] over micro-batches."""

    rows: np.ndarray
    stages: tuple[tuple[int, np.ndarray], ...]  # (decoder layers, the padded length [n] that they run at)
    pixels: np.ndarray  # visual tokens that the vision tower makes
    visual: np.ndarray  # visual tokens before the reduction
    kept: np.ndarray  # and after it
    text: np.ndarray
    targets: np.ndarray
    reduced: bool  # a reduction is attached, whatever it keeps
    tower_share: float = 1.0  # of the work of the vision tower's blocks, where a stage in it drops units
    tower_again: bool = False  # of a teacher or reference: it runs the tower once more

    @property
    def longest(self) -> int:
        """The micro-batch with the most tokens, summed over all layers."""
        return int(np.argmax(self.rows * sum(layers * lengths for layers, lengths in self.stages)))

    def padded(self, at: int) -> bool:
        """Whether rows of micro-batch `at` differ in length: attention then gets a mask and keeps it."""
        return bool(self.rows[at] * self.stages[0][1][at] > self.text[at] + self.visual[at])


class MicroBatches:
    """The micro-batches of a run. batches [n, rows]: numbers of rows; depth: decoder layers."""

    def __init__(self, rows: PlannedRows, batches: np.ndarray, depth: int, multiple: int | None) -> None:
        self.data, self.batches, self.depth, self.multiple = rows, batches, depth, multiple or 1
        self.text, self.visual, self.targets = rows.text, rows.visual, rows.targets

    def workload(self, reducers: Sequence[Reducer] = ()) -> StepWorkload:
        kept = list(self.data.kept(*reducers)) if reducers else []
        layers = [0 if isinstance(reducer, FewerPixels) else reducer.layer for reducer in reducers]
        resized = bool(reducers) and isinstance(reducers[0], FewerPixels)
        return self._workload(kept, layers, kept[0] if resized else self.visual)

    def at_share(self, share: float, layer: int, resized: bool = False) -> StepWorkload:
        """With this share of the visual tokens kept from `layer` on, not rounded. resized: the tower makes fewer."""
        kept = self.visual * share
        return self._workload([kept], [layer], kept if resized else self.visual)

    def _workload(self, kept: Sequence[np.ndarray], layers: Sequence[int], pixels: np.ndarray) -> StepWorkload:
        ends = [*layers, self.depth]
        visible = [self.visual, *kept]
        stages = [(ends[0], self._padded(self.text + visible[0], self.multiple))]
        for i, visual in enumerate(kept):
            stages.append((ends[i + 1] - ends[i], self._padded(self.text + np.minimum(visual, visible[i]), 1)))
        total = self._sum
        return StepWorkload(
            rows=total(self.text > 0),
            stages=tuple((number, lengths) for number, lengths in stages if number),
            pixels=total(pixels),
            visual=total(self.visual),
            kept=total(visible[-1]),
            text=total(self.text),
            targets=total(self.targets),
            reduced=bool(kept),
        )

    def _padded(self, lengths: np.ndarray, multiple: int) -> np.ndarray:
        longest = lengths[self.batches].max(1)
        return -(-longest // multiple) * multiple if multiple > 1 else longest

    def _sum(self, values: np.ndarray) -> np.ndarray:
        return values[self.batches].sum(1)
