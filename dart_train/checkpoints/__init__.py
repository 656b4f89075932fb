"""Folders of a run's state: written so that a half one is never taken for a whole one, found and loaded again."""

from .atomic import MARK, IncompleteCheckpoint, is_complete, latest_complete, problems, seal, steps_of, sweep
from .loading import Found, Loaded, find, load
from .provenance import FORMAT_WRITTEN as FORMAT
from .provenance import Budgets, Provenance, UntrainedBudget, read_reducers, write_reducers

__all__ = [
    "FORMAT",
    "MARK",
    "Budgets",
    "Found",
    "IncompleteCheckpoint",
    "Loaded",
    "Provenance",
    "UntrainedBudget",
    "find",
    "is_complete",
    "latest_complete",
    "load",
    "problems",
    "read_reducers",
    "seal",
    "steps_of",
    "sweep",
    "write_reducers",
]
