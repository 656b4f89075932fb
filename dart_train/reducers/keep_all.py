"""Keep-all: the reduction's machinery with nothing dropped; every law is measured against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Reducer
from .view import View


@dataclass(frozen=True, kw_only=True)
class KeepAll(Reducer):
    """Ignores its budget."""

    name: ClassVar[str] = "keep_all"

    def count(self, size: int, budget: int, prompt: int) -> int:
        return size

    def select(self, view: View) -> Tensor:
        return view.valid

    def content(self, view: View, keep: Tensor) -> Tensor | None:
        return None
