"""What a forward kept, for whoever wants to look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .flight import Flight


@dataclass(frozen=True)
class Kept:
    """mask [B, L] bool: kept tokens after the last stage, text included; visual [B, L] bool: visual ones of the
    input; stages: the mask after each stage; visual_before, visual_after: numbers per sample, on the host;
    pivots [B, L] bool: image and text tokens that the last stage's choice started from, None where it has none."""

    mask: Tensor
    visual: Tensor
    stages: tuple[Tensor, ...]
    visual_before: tuple[int, ...]
    visual_after: tuple[int, ...]
    length: int
    pivots: Tensor | None = None

    @classmethod
    def of(cls, flight: Flight) -> Kept:
        assert flight.batch is not None and flight.pools is not None
        masks = tuple(kept.mask() for kept in flight.kept)
        after = [0] * flight.batch.shape[0]
        for row, number in zip(flight.pools.row_of, flight.kept_visual[-1], strict=True):
            after[row] += number
        before = flight.batch.visual.sum(1).tolist()
        visual = flight.batch.visual.to(masks[-1].device)
        pivots = _pivots(flight, masks[-1])
        return cls(masks[-1], visual, masks, tuple(before), tuple(after), flight.kept[-1].length, pivots)

    @property
    def kept_visual(self) -> Tensor:
        """[B, L] bool."""
        return self.mask & self.visual


def _pivots(flight: Flight, like: Tensor) -> Tensor | None:
    told = flight.pivots[-1]
    if told is None or flight.pools is None:
        return None
    places, count = told
    mask = torch.zeros_like(like)
    mask[flight.pools.rows[:, None].expand_as(places)[count], places[count]] = True
    return mask
