"""FastV: the visual tokens that the last prompt token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import ScoreReducer
from .view import View


@dataclass(frozen=True, kw_only=True)
class FastV(ScoreReducer):
    """Attention of the last prompt token in layer K-1, mean over heads; the highest are kept.

    Only that one row of attention is computed, beside the fast kernel.
    """

    name: ClassVar[str] = "fastv"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    @torch.no_grad()
    def score(self, view: View) -> Tensor:
        return view.visual("attention")
