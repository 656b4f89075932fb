"""Attributes and submodules set on objects for a while, and taken off again: also from a copy of these objects."""

from __future__ import annotations

import copy
from typing import Any

_ABSENT = object()


class ObjectPatcher:
    """Sets attributes on objects for a while. Remembers what each object's own `__dict__` held, so that undoing leaves
    no trace."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []
        self._modules: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        self._before.append((owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = value  # not setattr: a module would register it, a property would intercept it

    def set_module(self, owner: Any, name: str, module: Any) -> None:
        """Registers a submodule, whose parameters then are the owner's."""
        self._modules.append((owner, name, owner._modules.get(name)))
        owner._modules[name] = module

    def undo(self) -> None:
        while self._modules:
            owner, name, module = self._modules.pop()
            owner._modules.pop(name, None)
            if module is not None:
                owner._modules[name] = module
        while self._before:
            owner, name, value = self._before.pop()
            _restore(owner, name, value)

    def undo_in_copy(self, memo: dict[int, Any]) -> None:
        """On copies of the owners, made by `copy.deepcopy` with this memo. Submodules stay."""
        for owner, name, value in reversed(self._before):
            clone = memo.get(id(owner))
            if clone is not None:
                _restore(clone, name, value if value is _ABSENT else copy.deepcopy(value, memo))

    def take_modules_of_copy(self, other: ObjectPatcher, memo: dict[int, Any]) -> None:
        """This patches a copy of what `other` patches, submodules included: undo them as there."""
        before = {(id(memo[id(owner)]), name): module for owner, name, module in other._modules}
        self._modules = [
            (owner, name, copy.deepcopy(before.get((id(owner), name), module), memo))
            for owner, name, module in self._modules
        ]


def _restore(owner: Any, name: str, value: Any) -> None:
    if value is _ABSENT:
        vars(owner).pop(name, None)
    else:
        vars(owner)[name] = value
