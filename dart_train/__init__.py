"""DART inside the forward pass: train multimodal language models for fewer visual tokens, and serve them so."""

from .attach import Attached, Kept, attach
from .check import check
from .checkpoint import load
from .compare import compare
from .export import export
from .reducers import (
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
from .train import train

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
