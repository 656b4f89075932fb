"""The methods: each file holds one idea, and is its own configuration."""

from .base import Reducer, ScoreReducer
from .context import Seen, View
from .methods.baselines import Balance, FewerPixels, KeepAll, Random
from .methods.dart import DART
from .methods.fastv import FastV, ReverseFastV, WindowFastV
from .methods.grid import Pooling, UniformGrid
from .registry import REDUCERS, from_config, reducer_class
from .token_counts import kept_by_stages

__all__ = [
    "DART",
    "REDUCERS",
    "Balance",
    "FastV",
    "FewerPixels",
    "KeepAll",
    "Pooling",
    "Random",
    "Reducer",
    "ReverseFastV",
    "ScoreReducer",
    "Seen",
    "UniformGrid",
    "View",
    "WindowFastV",
    "from_config",
    "kept_by_stages",
    "reducer_class",
]
