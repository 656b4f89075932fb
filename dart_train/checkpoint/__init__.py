"""Folders of a run's state: written so that a half one is never taken for a whole one."""

from .seal import MARK, Damaged, is_whole, newest_whole, problems, seal, steps_of, sweep
from .written import FORMAT, read_reducers, write_reducers

__all__ = [
    "FORMAT",
    "MARK",
    "Damaged",
    "is_whole",
    "newest_whole",
    "problems",
    "read_reducers",
    "seal",
    "steps_of",
    "sweep",
    "write_reducers",
]
