"""Loss and accuracy on the validation rows, at several budgets: a checkpoint is never judged at one alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from ..budget import Keep
from ..data.collate import Collator
from ..data.dataset import Reader, RowDataset
from ..data.encode import Encoder
from ..data.sources import open_sources
from ..recipe import Recipe
from .feed import image_store
from .losses import accuracy, tell
from .ranks import Ranks

if TYPE_CHECKING:
    from .trainer import DartTrainer


@dataclass
class Validation:
    """`batches`: those of this rank, as many as any other rank has; an empty one still takes part."""

    budgets: dict[str, tuple[Keep, ...] | None]  # suffix of the metrics: a budget for each stage
    batches: DataLoader[Any]

    @classmethod
    def open(cls, recipe: Recipe, ranks: Ranks, processor: Any) -> Validation | None:
        data = recipe.data
        if not data.validation:
            return None
        if any(source.streaming for source in data.validation):
            raise ValueError("data.validation: streaming is for training rows; leave it out here")
        sources = open_sources(data.validation, image_store(data))
        encoder = Encoder(processor, data.max_length, data.on_too_long)
        rows = RowDataset(Reader(sources, encoder, data.on_bad_row, data.max_bad_fraction))
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


def _divided(rows: int, size: int, ranks: Ranks) -> list[list[int]]:
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
