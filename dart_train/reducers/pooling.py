"""Pooling: average pooling of the image's grid to the budget (the paper: 2 x 2, 576 -> 144)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..pools import upload
from .cells import cells_of, centres
from .uniform import UniformGrid
from .view import View


@dataclass(frozen=True, kw_only=True)
class Pooling(UniformGrid):
    """The uniform grid whose kept tokens take in their cell: its mean stands at its middle."""

    name: ClassVar[str] = "pooling"

    def content(self, view: View, keep: Tensor) -> Tensor:
        return upload(centres(cells_of(view, self.counts(view.pools))), keep.device)
