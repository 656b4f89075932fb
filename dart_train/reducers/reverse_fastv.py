"""ReverseFastV: the visual tokens that the last prompt token attends to least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .fastv import FastV
from .view import View


@dataclass(frozen=True, kw_only=True)
class ReverseFastV(FastV):
    """FastV's scores upside down: a test of whether the attention criterion means anything.

    Built from the method's name and its place in the comparison tables; the body of the paper that
    introduces it was not available.
    """

    name: ClassVar[str] = "reverse_fastv"

    @torch.no_grad()
    def score(self, view: View) -> Tensor:
        return -view.visual("attention")
