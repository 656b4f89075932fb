"""Uniform grid: the middle token of each of `keep` equal cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..pools import upload
from .base import Reducer
from .cells import cells_of, centres
from .view import View


@dataclass(frozen=True, kw_only=True)
class UniformGrid(Reducer):
    """Looks at no content at all: the spatial control for every method that does."""

    name: ClassVar[str] = "uniform"
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})

    @torch.no_grad()
    def select(self, view: View) -> Tensor:
        cells = cells_of(view, self.counts(view.pools))
        chosen = (centres(cells) == torch.arange(cells.shape[1])) & (cells >= 0)
        return upload(chosen, view.valid.device) & view.valid
