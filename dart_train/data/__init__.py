"""Rows in the formats people have, checked, in a fixed order, through the model's own processor, into batches."""

from .check import check_rows
from .collate import Collator
from .dataset import Reader, RowDataset, Skipped
from .dummy import dummy_inputs
from .encode import Encoded, Encoder
from .findings import BadRow, Finding
from .formats import normalise
from .images import ImageStore
from .order import RankBatches, RowOrder, steps_for
from .sources import Source, SourceSpec, open_source, open_sources
from .stream import RowStream
from .survey import row_lengths

__all__ = [
    "BadRow",
    "Collator",
    "Encoded",
    "Encoder",
    "Finding",
    "ImageStore",
    "RankBatches",
    "Reader",
    "RowDataset",
    "RowOrder",
    "RowStream",
    "Skipped",
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
