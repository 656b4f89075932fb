"""From a name and options to a reducer: the registry, and classes of other packages by `package.module:Class`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .base import Reducer
from .methods.baselines import Balance, FewerPixels, KeepAll, Random
from .methods.dart import DART
from .methods.fastv import FastV, ReverseFastV, WindowFastV
from .methods.grid import Pooling, UniformGrid
from .methods.learned import Learned

_CLASSES: tuple[type[Reducer], ...] = (
    DART,
    Learned,
    FastV,
    ReverseFastV,
    WindowFastV,
    Pooling,
    Random,
    UniformGrid,
    Balance,
    KeepAll,
    FewerPixels,
)
REDUCERS: dict[str, type[Reducer]] = {cls.name: cls for cls in _CLASSES}


def reducer_class(method: str) -> type[Reducer]:
    if ":" in method:
        return _imported(method)
    if method not in REDUCERS:
        near = difflib.get_close_matches(method, REDUCERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"method={method!r}: expected one of {', '.join(REDUCERS)}, or package.module:Class{hint}")
    return REDUCERS[method]


def _imported(method: str) -> type[Reducer]:
    module, _, name = method.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"method={method!r}: cannot be imported ({error}); is the package installed?") from error
    if not (isinstance(found, type) and issubclass(found, Reducer)):
        raise ValueError(f"method={method!r}: expected a subclass of dart_train.Reducer, found {found!r}")
    return found


def from_config(config: Mapping[str, Any]) -> Reducer:
    """{"method": "dart", "keep": 64, ...} -> DART(keep=64); everything wrong is named at once."""
    options = dict(config)
    method = options.pop("method", None)
    if not isinstance(method, str):
        raise ValueError(f"method={method!r}: expected the name of a method, one of {', '.join(REDUCERS)}")
    cls = reducer_class(method)
    known = [field.name for field in fields(cls)]
    problems = [_unknown(key, known) for key in options if key not in known]
    try:
        reducer = cls(**{key: value for key, value in options.items() if key in known})
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{method}: " + "; ".join(problems))
    return reducer


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"unknown option {key!r}, expected one of {', '.join(known)}" + (
        f"; did you mean {near[0]}?" if near else ""
    )
