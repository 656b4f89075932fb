"""The methods: each file holds one idea, and is its own configuration."""

from .balance import Balance
from .base import Reducer, ScoreReducer
from .dart import DART
from .fastv import FastV
from .fewer_pixels import FewerPixels
from .forecast import kept_by_stages
from .keep_all import KeepAll
from .pooling import Pooling
from .random import Random
from .registry import REDUCERS, from_config, reducer_class
from .reverse_fastv import ReverseFastV
from .uniform import UniformGrid
from .view import Seen, View
from .window_fastv import WindowFastV

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
