"""Which visual tokens are kept, in pure torch: methods, budgets, schedules. Each file of `methods` holds one idea; a
method is a dataclass, and is its own configuration.

Names are imported on first use: recipes are read with `budget` and `schedule` alone, without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Reducer, ScoreReducer
    from .context import Observed, SelectionContext, View
    from .methods.baselines import Balance, FewerPixels, KeepAll, Random
    from .methods.dart import DART
    from .methods.fastv import FastV, ReverseFastV, WindowFastV
    from .methods.grid import Pooling, UniformGrid
    from .methods.learned import Learned
    from .registry import REDUCERS, from_config, reducer_class
    from .token_counts import count_kept_by_stage
    from .tower import TowerDART, tower_from_config

_MODULE_OF = {
    **dict.fromkeys(("Reducer", "ScoreReducer"), "base"),
    **dict.fromkeys(("Observed", "SelectionContext", "View"), "context"),
    **dict.fromkeys(("Balance", "FewerPixels", "KeepAll", "Random"), "methods.baselines"),
    "DART": "methods.dart",
    **dict.fromkeys(("FastV", "ReverseFastV", "WindowFastV"), "methods.fastv"),
    **dict.fromkeys(("Pooling", "UniformGrid"), "methods.grid"),
    "Learned": "methods.learned",
    **dict.fromkeys(("REDUCERS", "from_config", "reducer_class"), "registry"),
    "count_kept_by_stage": "token_counts",
    **dict.fromkeys(("TowerDART", "tower_from_config"), "tower"),
}

__all__ = [
    "DART",
    "REDUCERS",
    "Balance",
    "FastV",
    "FewerPixels",
    "KeepAll",
    "Learned",
    "Observed",
    "Pooling",
    "Random",
    "Reducer",
    "ReverseFastV",
    "ScoreReducer",
    "SelectionContext",
    "TowerDART",
    "UniformGrid",
    "View",
    "WindowFastV",
    "count_kept_by_stage",
    "from_config",
    "reducer_class",
    "tower_from_config",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
