"""Rows in the formats people have, checked, in a fixed order, through the model's own processor, into batches."""

from .check import check_rows, row_lengths
from .collator import Collator, dummy_inputs
from .dataset import Reader, RowDataset, RowStream, SkippedRow
from .encoder import Encoded, Encoder
from .formats import normalise
from .images import ImageStore
from .issues import BadRowError, Finding
from .sampler import DeterministicOrder, RankBatchSampler, steps_for
from .sources import Source, SourceSpec, open_source, open_sources

__all__ = [
    "BadRowError",
    "Collator",
    "DeterministicOrder",
    "Encoded",
    "Encoder",
    "Finding",
    "ImageStore",
    "RankBatchSampler",
    "Reader",
    "RowDataset",
    "RowStream",
    "SkippedRow",
    "Source",
    "SourceSpec",
    "check_rows",
    "dummy_inputs",
    "normalise",
    "open_source",
    "open_sources",
    "row_lengths",
    "steps_for",
]
