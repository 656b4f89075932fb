"""A method of somebody else's package, named in a recipe as `tests.laws.outside:EveryOther`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dart_train import Reducer, ScoreReducer, View


@dataclass(frozen=True, kw_only=True)
class EveryOther(ScoreReducer):
    """Even places first."""

    def score(self, view: View) -> Tensor:
        place = torch.arange(view.valid.shape[1]).expand_as(view.valid)
        return (place % 2 == 0).float()


@dataclass(frozen=True, kw_only=True)
class Miscounts(Reducer):
    """Keeps one token, whatever it promised."""

    def select(self, view: View) -> Tensor:
        keep = torch.zeros_like(view.valid)
        keep[:, 0] = True
        return keep
