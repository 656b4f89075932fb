"""`copy.deepcopy` and pickling of a model with a reduction: reference models and averaged weights are made that way.

Hooks hold the model that they were registered on. Copied as they are, they would run the original's weights.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import nn

COPY, REDUCE = "__deepcopy__", "__reduce_ex__"


def copy_without_hooks(module: nn.Module, memo: dict[int, Any], hooks: Iterable[int]) -> nn.Module:
    """A deep copy whose modules lack the hooks of these ids; other hooks stay."""
    with _default_copying(module):
        clone: nn.Module = copy.deepcopy(module, memo)
    ids = set(hooks)
    for part in clone.modules():
        for name, registered in vars(part).items():
            if name.startswith("_forward") and isinstance(registered, dict):
                for number in ids & registered.keys():
                    del registered[number]
    return clone


@contextmanager
def _default_copying(module: nn.Module) -> Iterator[None]:
    held = {name: vars(module).pop(name) for name in (COPY, REDUCE) if name in vars(module)}
    try:
        yield
    finally:
        vars(module).update(held)


def refuse_pickling(protocol: Any = None) -> NoReturn:
    raise pickle.PicklingError(
        "a model with a reduction attached cannot be pickled (torch.save(model), or an argument of a spawned process): "
        "its hooks are functions of this process. Save model.state_dict() or use model.save_pretrained(), or call "
        "remove() first, and attach again after loading."
    )
