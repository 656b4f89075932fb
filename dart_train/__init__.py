"""DART inside the forward pass: train multimodal language models for fewer visual tokens, and serve them so."""

from .checkpoints import load
from .conformance import check
from .evaluation import compare
from .exporting import export
from .hooks import Attached, Kept, attach
from .reduction import (
    DART,
    REDUCERS,
    Balance,
    FastV,
    FewerPixels,
    KeepAll,
    Pooling,
    Random,
    Reducer,
    ReverseFastV,
    ScoreReducer,
    UniformGrid,
    View,
    WindowFastV,
    from_config,
)
from .training import train

__version__ = "0.1.0"

__all__ = [
    "DART",
    "REDUCERS",
    "Attached",
    "Balance",
    "FastV",
    "FewerPixels",
    "KeepAll",
    "Kept",
    "Pooling",
    "Random",
    "Reducer",
    "ReverseFastV",
    "ScoreReducer",
    "UniformGrid",
    "View",
    "WindowFastV",
    "attach",
    "check",
    "compare",
    "export",
    "from_config",
    "load",
    "train",
]
