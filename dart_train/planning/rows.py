"""One row of a plan: where it is, and how many tokens it has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from datasets import Dataset

from ..data.issues import RowIssue
from ..data.sample import Sample
from ..data.sources import DataSource


@dataclass(frozen=True)
class RowLocation:
    source: DataSource
    index: int

    def row(self) -> Any:
        rows = self.source.rows
        return rows[self.index] if isinstance(rows, Dataset) else next(islice(rows, self.index, None))

    def sample(self) -> Sample:
        return self.source.sample(self.row(), self.index)


@dataclass(frozen=True)
class PlannedRow:
    """Tokens of a row within max_length; `text` counts all that are not visual. A dropped row has none."""

    location: RowLocation
    text: int = 0
    visual: tuple[int, ...] = ()  # tokens of each image
    answer_starts: tuple[int, ...] = ()  # of each image, as in `data.encoder.Length`
    prompt_tokens_after: tuple[int, ...] = ()  # of each image
    targets: int = 0  # supervised tokens
    sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of each image
    fault: RowIssue | None = None  # why it is dropped

    @property
    def dropped(self) -> bool:
        return not self.text
