"""Which reduction a loaded model gets: the one it was trained with, another, or that one at another budget."""

from __future__ import annotations

import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..budget import Keep
from ..reducers import DART, FewerPixels, Reducer, from_config
from .budgets import Budgets, UntrainedBudget, told

# ...: as trained; None: none; else one, several stages of one, their configuration, or the name of a method.
Choice = types.EllipsisType | None | str | Reducer | Mapping[str, Any] | Sequence[Any]


def choose(trained: Sequence[Reducer] | None, wanted: Choice, keep: Keep | Sequence[Keep] | None) -> list[Reducer]:
    """keep: another budget for it, one for each stage. Without a training, a budget alone means DART at it."""
    if wanted is ...:
        chosen = list(trained or ([DART()] if keep is not None else []))
    elif wanted is None:
        chosen = []
    elif isinstance(wanted, str):
        chosen = _by_name(wanted, trained or [], keep)
    else:
        stages: Sequence[Any] = [wanted] if isinstance(wanted, Reducer | Mapping) else wanted
        chosen = [stage if isinstance(stage, Reducer) else from_config(stage) for stage in stages]
    if wanted is not ... and any(isinstance(stage, FewerPixels) for stage in chosen):
        raise ValueError(
            "fewer_pixels makes the pictures smaller and works at the processor: load with reducer=None, then "
            "dart_train.pixels.fewer_pixels(processor, keep)"
        )
    return chosen if keep is None else _at(chosen, keep)


def _by_name(name: str, trained: Sequence[Reducer], keep: object) -> list[Reducer]:
    """With the options of the training where the method is the same, at its layer and budget where it is not."""
    if name == "none":
        return []
    bare = from_config({"method": name})
    if trained and all(type(stage) is type(bare) for stage in trained):
        return list(trained)
    if len(trained) == 1:
        return [replace(bare, layer=trained[0].layer, keep=trained[0].keep, per=trained[0].per)]
    if keep is None and name != "keep_all":
        raise ValueError(f"reducer={name!r}: how many tokens it keeps is not known; give keep=, such as 64 or 0.222")
    return [bare]


def _at(stages: Sequence[Reducer], keep: Keep | Sequence[Keep]) -> list[Reducer]:
    budgets = list(keep) if isinstance(keep, Sequence) else [keep]
    if not stages:
        raise ValueError(f"keep={keep!r} was given, but no reduction is attached; give a reducer, such as 'dart'")
    if len(budgets) != len(stages):
        raise ValueError(f"keep={keep!r}: {len(budgets)} budgets for {len(stages)} stages; give one for each stage")
    return [replace(stage, keep=budget) for stage, budget in zip(stages, budgets, strict=True)]


def warn_if_untrained(stages: Sequence[Reducer], trained: Budgets | None) -> None:
    """Serving at a budget that training never saw is allowed, and said."""
    served: tuple[Keep, ...] = tuple(stage.keep for stage in stages) or (1.0,)
    if trained is not None and not trained.include(served):
        warnings.warn(f"served at {told([served])}, but trained at {trained}", UntrainedBudget, stacklevel=3)
