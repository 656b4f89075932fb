"""Training data: rows in common formats, checked, in a deterministic order, encoded by the model's processor, in
batches."""

from .check import check_rows
from .collator import Collator, dummy_inputs
from .dataset import RowDataset, RowReader, RowStream, SkippedRow
from .encoder import Encoded, Encoder
from .formats import normalise
from .images import ImageStore
from .issues import BadRowError, RowIssue
from .packing_collator import PackingCollator
from .sampler import DeterministicOrder, RankBatchSampler, steps_for
from .sources import DataSource, SourceSpec, open_source, open_sources
from .survey import row_lengths
from .token_batches import RankTokenSampler, TokenBatches

__all__ = [
    "BadRowError",
    "Collator",
    "DataSource",
    "DeterministicOrder",
    "Encoded",
    "Encoder",
    "ImageStore",
    "PackingCollator",
    "RankBatchSampler",
    "RankTokenSampler",
    "RowDataset",
    "RowIssue",
    "RowReader",
    "RowStream",
    "SkippedRow",
    "SourceSpec",
    "TokenBatches",
    "check_rows",
    "dummy_inputs",
    "normalise",
    "open_source",
    "open_sources",
    "row_lengths",
    "steps_for",
]
