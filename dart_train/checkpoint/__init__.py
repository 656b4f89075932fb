"""Folders of a run's state: written so that a half one is never taken for a whole one, found and loaded again."""

from .budgets import Budgets, UntrainedBudget
from .find import Found, find
from .known import Provenance
from .loading import Loaded, load
from .seal import MARK, Damaged, is_whole, newest_whole, problems, seal, steps_of, sweep
from .written import FORMAT, read_reducers, write_reducers

__all__ = [
    "FORMAT",
    "MARK",
    "Budgets",
    "Damaged",
    "Found",
    "Loaded",
    "Provenance",
    "UntrainedBudget",
    "find",
    "is_whole",
    "load",
    "newest_whole",
    "problems",
    "read_reducers",
    "seal",
    "steps_of",
    "sweep",
    "write_reducers",
]
