"""DART inside the forward pass: train multimodal language models for fewer visual tokens, and serve them so.

Names are imported on first use, so that `import dart_train` is fast and a command imports only what it needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoints import load
    from .conformance import check
    from .evaluation import compare
    from .exporting import export
    from .hooks import Attached, Kept, attach, attached_to
    from .models.processors import load_processor
    from .reduction import (
        DART,
        REDUCERS,
        Balance,
        FastV,
        FewerPixels,
        KeepAll,
        Learned,
        Pooling,
        Random,
        Reducer,
        ReverseFastV,
        ScoreReducer,
        TowerDART,
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
    "Learned",
    "Pooling",
    "Random",
    "Reducer",
    "ReverseFastV",
    "ScoreReducer",
    "TowerDART",
    "UniformGrid",
    "View",
    "WindowFastV",
    "attach",
    "attached_to",
    "check",
    "compare",
    "export",
    "from_config",
    "load",
    "load_processor",
    "train",
]

_PACKAGE_OF = {
    "load": "checkpoints",
    "check": "conformance",
    "compare": "evaluation",
    "export": "exporting",
    **dict.fromkeys(("Attached", "Kept", "attach", "attached_to"), "hooks"),
    "load_processor": "models.processors",
    "train": "training",
}  # all others: reduction


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PACKAGE_OF.get(name, 'reduction')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
