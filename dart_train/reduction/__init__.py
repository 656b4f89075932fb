"""The methods: each file holds one idea, and is its own configuration."""

from .base import Reducer, ScoreReducer
from .context import Observed, SelectionContext, View
from .methods.baselines import Balance, FewerPixels, KeepAll, Random
from .methods.dart import DART
from .methods.fastv import FastV, ReverseFastV, WindowFastV
from .methods.grid import Pooling, UniformGrid
from .registry import REDUCERS, from_config, reducer_class
from .token_counts import count_kept_by_stage

__all__ = [
    "DART",
    "REDUCERS",
    "Balance",
    "FastV",
    "FewerPixels",
    "KeepAll",
    "Observed",
    "Pooling",
    "Random",
    "Reducer",
    "ReverseFastV",
    "ScoreReducer",
    "SelectionContext",
    "UniformGrid",
    "View",
    "WindowFastV",
    "count_kept_by_stage",
    "from_config",
    "reducer_class",
]
