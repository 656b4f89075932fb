"""Reward functions by name, `package.module:function`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...common.io import ProblemCollector


def load_rewards(names: Sequence[str]) -> list[Callable[..., Any]]:
    """Modules are looked for in the working folder too. Raises ValueError with all that is wrong."""
    problems, found = ProblemCollector(), list[Callable[..., Any]]()
    for number, name in enumerate(names):
        reward = problems.collect(partial(_load, name, f"preference.rewards.{number}"))
        if reward is not None:
            found.append(reward)
    if problems.problems:
        raise ValueError("\n".join(problems.problems))
    return found


def _load(name: str, key: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        reward: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(f"{key}: the module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{key}: {module!r} has no {attribute!r}") from error
    finally:
        sys.path.remove(here)
    if not callable(reward):
        raise ValueError(f"{key}: {name} is {type(reward).__name__}; expected a function")
    return reward
