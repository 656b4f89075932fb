"""What the rows of a recipe cost, in tokens: read once, evenly over every source, pictures by their size alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from datasets import Dataset

from ..config import Recipe
from ..data.encoder import Encoder
from ..data.images import ImageStore, fitted_size
from ..data.issues import BadRowError
from ..data.sample import Sample
from ..data.sampler import DeterministicOrder
from ..data.sources import DataSource, open_sources
from ..data.supervision import make_tokens
from ..models.resize import reached
from ..reduction import FewerPixels, Reducer, count_kept_by_stage

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Place:
    """Where a row lies."""

    source: DataSource
    index: int

    def sample(self) -> Sample:
        rows = self.source.rows
        row = rows[self.index] if isinstance(rows, Dataset) else next(islice(rows, self.index, None))
        return self.source.sample(row, self.index)


@dataclass(frozen=True)
class Row:
    """Tokens of a row behind max_length; `text` counts all that are not visual. A dropped row has none."""

    place: Place
    text: int = 0
    visual: tuple[int, ...] = ()  # of each picture
    turns: tuple[int, ...] = ()  # and its place in the conversation, as in `Length`
    behind: tuple[int, ...] = ()
    learnt: int = 0  # tokens that are supervised
    sizes: tuple[Size, ...] = ()

    @property
    def dropped(self) -> bool:
        return not self.text


@dataclass(frozen=True)
class Rows:
    """rows: those looked at, source after source, `counts` of each; totals: rows of each source, None: streamed."""

    rows: tuple[Row, ...]
    counts: tuple[int, ...]
    totals: tuple[int, ...] | None
    encoder: Encoder

    @property
    def text(self) -> np.ndarray:
        return np.array([row.text for row in self.rows])

    @property
    def visual(self) -> np.ndarray:
        return np.array([sum(row.visual) for row in self.rows])

    @property
    def learnt(self) -> np.ndarray:
        return np.array([row.learnt for row in self.rows])

    def kept(self, *stages: Reducer) -> np.ndarray:
        """[stages, rows] visual tokens that are kept by each."""
        return np.array([self._kept(row, stages) for row in self.rows]).T

    def _kept(self, row: Row, stages: Sequence[Reducer]) -> list[int]:
        if isinstance(stages[0], FewerPixels):
            made = [reached(self.encoder.processor, stages[0].keep, height, width) for width, height in row.sizes]
            return [sum(size.tokens for size in made)] * len(stages)
        return count_kept_by_stage(stages, row.visual, row.turns, row.behind)

    def order(self, recipe: Recipe, sizes: Sequence[int], group: int = 1) -> DeterministicOrder:
        """Of so many rows of each source; grouped by length where the recipe does so and these rows are meant."""
        weights = [source.weight for source in recipe.data.train]
        lengths = None
        if recipe.data.group_by_length and tuple(sizes) == self.counts:
            reducers = recipe.reduction.reducers()
            lengths = self.text + (self.kept(*reducers)[-1] if reducers else self.visual)
        return DeterministicOrder(sizes, weights, recipe.data.seed, lengths, group)


def read_rows(recipe: Recipe, encoder: Encoder, limit: int = 0) -> Rows:
    """At most about `limit` rows, evenly spread, as many of each source as its share of all; 0: every row."""
    data = recipe.data
    sources = open_sources(data.train, ImageStore(None, data.allow_urls, data.max_pixels, data.min_pixels))
    totals = None if any(source.streaming for source in data.train) else tuple(len(s.rows) for s in sources)
    every = max(1, -(-sum(totals) // limit)) if totals and limit else 1
    found = [[_look(encoder, *each) for each in _spread(source, every, limit)] for source in sources]
    rows = Rows(tuple(row for part in found for row in part), tuple(map(len, found)), totals, encoder)
    if all(row.dropped for row in rows.rows):
        raise ValueError(
            f"data.train: none of the {len(rows.rows)} rows looked at can be used; see what is wrong with them: "
            "python -m dart_train data check RECIPE"
        )
    return rows


def _spread(source: DataSource, every: int, limit: int) -> Iterator[tuple[Place, Any]]:
    rows = source.rows
    if not isinstance(rows, Dataset):
        yield from ((Place(source, i), row) for i, row in enumerate(islice(rows, limit or None)))
        return
    for index in range(every // 2 if every // 2 < len(rows) else 0, len(rows), every):
        yield Place(source, index), rows[index]


def _look(encoder: Encoder, place: Place, row: Any) -> Row:
    store = place.source.store
    try:
        sample = place.source.sample(row, place.index)
        sizes = tuple(fitted_size(store.size(ref), store.min_pixels, store.max_pixels) for ref in sample.images)
        length = encoder.measure(sample, sizes)
        if not length.used:
            return Row(place)
        text = length.used - sum(length.visual)
        learnt = min(text, learnt_tokens(encoder, sample))
        return Row(place, text, length.visual, length.answer_starts, length.prompt_tokens_after, learnt, sizes)
    except BadRowError:
        return Row(place)


def learnt_tokens(encoder: Encoder, sample: Sample) -> int:
    """Supervised tokens of a sample that is not cut; the placeholders of pictures are in no answer."""
    text, answers = encoder.template.answers(sample.messages())
    output = encoder.processor.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return len(make_tokens(output["input_ids"], output["offset_mapping"], text, answers, []).supervised)


def batches(rows: Rows, recipe: Recipe, ranks: int) -> np.ndarray:
    """[n, rows of a micro-batch] numbers of rows, in the order of training; n is a multiple of `ranks`."""
    train = recipe.train
    size = train.per_device_batch_size * ranks
    order = rows.order(recipe, rows.counts, size * train.gradient_accumulation_steps)
    number = max(1, len(order) // size)
    return np.array(order.rows(0, number * size)).reshape(number * ranks, train.per_device_batch_size)
