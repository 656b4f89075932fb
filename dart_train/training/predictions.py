"""A table of validation rows for the trackers: question, target, and what the model answers at the served budget.

The answers are those of the validation's own forward, in which each token is predicted after the correct ones before
it. They cost nothing more; generated answers, which continue their own mistakes, are measured by `compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from ..data.dataset import RowDataset
from ..data.encoder import Encoded
from .objective import SupervisedLogits, supervised

PREDICTED_ROWS = 16
_THUMBNAIL = (128, 128)
COLUMNS = ("row", "question", "answer (given the correct tokens before)", "target", "right", "image")


@dataclass(frozen=True)
class PredictedRow:
    """A validation row of the table. image: a small copy of its first image."""

    name: str
    question: str
    image: Image.Image | None


@dataclass
class PredictionTable:
    """The first usable rows of a rank's batches. batches: of each batch, its usable rows, as many as the table has."""

    batches: Sequence[Sequence[PredictedRow]]
    tokenizer: Any
    found: list[tuple[Any, ...]] = field(default_factory=list)

    @classmethod
    def open(cls, rows: RowDataset, batches: Sequence[Sequence[int]], tokenizer: Any) -> PredictionTable:
        shown: list[list[PredictedRow]] = []
        left = PREDICTED_ROWS
        for batch in batches:
            shown.append([_row(rows, number) for number in batch if isinstance(rows[number], Encoded)][:left])
            left -= len(shown[-1])
            if not left:
                break
        return cls(shown, tokenizer)

    def add(self, batch: int, host: Mapping[str, Any], output: SupervisedLogits) -> None:
        """host: batch number `batch`, as it was collated; output: that of its forward."""
        if batch >= len(self.batches) or not self.batches[batch]:
            return
        counts = supervised(host["labels"]).sum(1).tolist()
        predicted, targets = output.logits.argmax(-1).cpu().split(counts), output.targets.cpu().split(counts)
        for row, answer, target in zip(self.batches[batch], predicted, targets, strict=False):
            right = torch.equal(answer, target)
            self.found.append((row.name, row.question, self._text(answer), self._text(target), right, row.image))

    def take(self) -> list[tuple[Any, ...]]:
        """The rows of one validation, each with the entries of COLUMNS."""
        found, self.found = self.found, []
        return found

    def _text(self, ids: torch.Tensor) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


def _row(rows: RowDataset, number: int) -> PredictedRow:
    source, index = rows.locate(number)
    sample = source.sample(source.rows[index], index)
    question = " ".join(text for turn in sample.turns if turn.role == "user" for text in turn.texts)
    image = source.store.open(sample.images[0]).convert("RGB") if sample.images else None
    if image is not None:
        image.thumbnail(_THUMBNAIL)
    return PredictedRow(source.label(source.rows[index], index), question.strip(), image)
