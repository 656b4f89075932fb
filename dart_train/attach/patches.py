"""Attributes set on objects for a while, and put back exactly."""

from __future__ import annotations

from typing import Any

_ABSENT = object()


class Patches:
    """Remembers what each object's own `__dict__` held, so that undoing leaves no trace."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        self._before.append((owner, name, vars(owner).get(name, _ABSENT)))
        vars(owner)[name] = value  # not setattr: a module would register it, a property would intercept it

    def undo(self) -> None:
        while self._before:
            owner, name, value = self._before.pop()
            if value is _ABSENT:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = value
