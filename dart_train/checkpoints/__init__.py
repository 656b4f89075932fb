"""Checkpoints: written so that an incomplete one is never taken for a complete one, found again, and loaded."""

from ..reduction.reducer_file import read_reducers, write_reducers
from ..reduction.trained_budgets import TrainedBudgets
from .atomic import (
    COMPLETE_MARKER,
    IncompleteCheckpoint,
    commit_checkpoint,
    is_complete,
    latest_complete,
    prune,
    step_of,
    why_incomplete,
)
from .loading import Loaded, ReducerSpec, ResolvedModel, load, resolve
from .locate import CheckpointSelector, ModelLocation, locate
from .provenance import Provenance, UntrainedBudget

__all__ = [
    "COMPLETE_MARKER",
    "CheckpointSelector",
    "IncompleteCheckpoint",
    "Loaded",
    "ModelLocation",
    "Provenance",
    "ReducerSpec",
    "ResolvedModel",
    "TrainedBudgets",
    "UntrainedBudget",
    "commit_checkpoint",
    "is_complete",
    "latest_complete",
    "load",
    "locate",
    "prune",
    "read_reducers",
    "resolve",
    "step_of",
    "why_incomplete",
    "write_reducers",
]
