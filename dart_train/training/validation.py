"""Loss and accuracy on the validation rows, at several budgets: a model trained with a reduction is not evaluated at
one budget alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..common.distributed import RankInfo
from ..config import Recipe
from ..data.collator import Collator
from ..data.dataset import RowDataset, RowReader
from ..data.encoder import Encoder
from ..data.images import ImageStore
from ..data.sources import open_sources
from ..data.survey import sample_dropped_rows
from ..reduction.budget import Keep
from .data_feed import SAMPLED_ROWS
from .objective import StepBudgets, SupervisedLogits
from .predictions import PredictionTable

# A forward of a collated batch on the model in eval mode, without gradient.
EvalForward = Callable[[Mapping[str, Any]], SupervisedLogits]
# Makes one: the model is in eval mode inside the context, in train mode after it.
EvalMode = Callable[[], AbstractContextManager[EvalForward]]


@dataclass
class Validation:
    """batches: those of this rank, as many as every other rank has: an empty one still takes part in collectives.
    budgets: suffix of the metrics -> a budget for each stage; the empty suffix is the budget that is served."""

    budgets: dict[str, tuple[Keep, ...] | None]
    batches: DataLoader[Any]
    predictions: PredictionTable | None = None  # of the served budget, on the rank that has trackers

    @classmethod
    def open(cls, recipe: Recipe, ranks: RankInfo, processor: Any) -> Validation | None:
        """None: the recipe has no data.validation."""
        data = recipe.data
        if not data.validation:
            return None
        if any(source.streaming for source in data.validation):
            raise ValueError("data.validation: streaming is for training rows; leave it out here")
        sources = open_sources(data.validation, ImageStore.from_config(data).leave_limits_to(processor), data.turns)
        encoder = Encoder(processor, data.max_length, data.on_too_long)
        rows = RowDataset(RowReader(sources, encoder, data.on_bad_row, data.max_bad_fraction))
        if not len(rows):
            raise ValueError("data.validation: the data set is empty")
        if not data.allow_urls:  # the size of an image would be a download
            sample_dropped_rows(sources, encoder, SAMPLED_ROWS).check(data.max_bad_fraction, "data.validation")
        mine = _batches_of_rank(len(rows), recipe.train.per_device_eval_batch_size, ranks)
        collator = Collator(processor, data.pad_to_multiple_of)
        return cls(_budgets(recipe), DataLoader(rows, batch_sampler=mine, collate_fn=collator))

    def show_predictions(self, tokenizer: Any) -> None:
        """From now on `predictions` has a few rows of each validation."""
        rows: Any = self.batches.dataset
        numbers: Any = self.batches.batch_sampler
        self.predictions = PredictionTable.open(rows, list(numbers), tokenizer)

    def evaluate(self, budgets: StepBudgets, eval_mode: EvalMode, accelerator: Any) -> dict[str, float]:
        """Collective. `eval_loss` and `eval_accuracy` are those at the served budget; the others have its suffix."""
        metrics: dict[str, float] = {}
        with eval_mode() as forward:
            for suffix, keep in self.budgets.items():
                sums = torch.zeros(4)  # loss, weight of targets, correct targets, targets
                with budgets.temporarily(*(keep or ())):
                    for number, host in enumerate(self.batches):
                        output = forward(host)
                        if self.predictions is not None and not suffix:
                            self.predictions.add(number, host, output)
                        loss, weight = float(output.loss()), output.total_weight()
                        sums += torch.tensor([loss, weight, output.correct(), output.targets.numel()])
                loss, weight, correct, targets = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
                metrics[f"eval_loss{suffix}"] = loss / (weight or 1)
                metrics[f"eval_accuracy{suffix}"] = correct / max(targets, 1)
        return metrics


def _batches_of_rank(rows: int, size: int, ranks: RankInfo) -> list[list[int]]:
    batches = [list(range(start, min(start + size, rows))) for start in range(0, rows, size)]
    batches += [[]] * (-len(batches) % ranks.world)
    return batches[ranks.rank :: ranks.world]


def _budgets(recipe: Recipe) -> dict[str, tuple[Keep, ...] | None]:
    reducers = recipe.reduction.reducers()
    if not reducers:
        return {"": None}
    budgets: dict[str, tuple[Keep, ...] | None] = {"": tuple(reducer.keep for reducer in reducers)}
    for keep in recipe.train.eval_budgets if len(reducers) == 1 else (1.0,):
        name = "full" if keep == 1.0 and isinstance(keep, float) else f"{keep:g}"
        budgets[f"_at_{name}"] = (keep,) * len(reducers)
    return budgets
