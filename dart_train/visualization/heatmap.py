"""Where on the picture tokens are kept, over many samples: a map for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.geometry import Place
from .draw import INK, PALE, beside, cut, side_by_side, stacked, written

CELLS = 24
_STOPS = ((13, 8, 60), (92, 20, 120), (190, 55, 95), (245, 130, 50), (252, 230, 130))  # from 0 to 1


class Heat:
    """Counts, on cells of the unit square that every picture is stretched to, how much of what was seen there was
    kept. A cell that several tokens see (tiles and an overview) counts each by the part of it that they cover."""

    def __init__(self, cells: int = CELLS) -> None:
        self.cells = cells
        self.seen, self.kept = np.zeros((cells, cells)), np.zeros((cells, cells))
        self.samples = 0

    def add(self, places: Sequence[Place], kept: Sequence[bool], sizes: Sequence[tuple[int, int]]) -> None:
        """One sample; kept: of each visual token; sizes: (width, height) of each picture."""
        if len(kept) != len(places):
            raise ValueError(f"kept has {len(kept)} entries; expected one for each of the {len(places)} visual tokens")
        for place, keep in zip(places, kept, strict=True):
            if place.box is not None:
                width, height = sizes[place.picture]
                across = self._cover(place.box.left / width, place.box.right / width)
                part = np.outer(self._cover(place.box.top / height, place.box.bottom / height), across)
                self.seen += part
                self.kept += part * bool(keep)
        self.samples += 1

    def share(self) -> NDArray[np.float64]:
        """[cells, cells] in 0..1, NaN where no token ever looked."""
        with np.errstate(invalid="ignore"):
            found: NDArray[np.float64] = np.where(self.seen > 0, self.kept / self.seen, np.nan)
        return found

    def _cover(self, start: float, stop: float) -> NDArray[np.float64]:
        """[cells] how much of each cell the interval covers."""
        edges = np.arange(self.cells + 1) / self.cells
        return (np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)).clip(0) * self.cells


def heat_maps(heats: Mapping[str, Heat], heading: str = "Where tokens are kept", width: int = 220) -> Image.Image:
    """A panel for each method, all in one scale, which stands below."""
    found = {name: heat.share() for name, heat in heats.items() if heat.samples}
    if not found:
        raise ValueError("no sample was added to any heat map: there is nothing to draw")
    most = max(float(np.nanmax(share)) for share in found.values()) or 1.0
    panels = [_panel(name, heats[name], share, most, width) for name, share in found.items()]
    return side_by_side(panels, heading, legend=_scale(most))


def _panel(name: str, heat: Heat, share: NDArray[np.float64], most: float, width: int) -> Image.Image:
    head = written([cut(name, width, 16, bold=True)], 16, bold=True, colour=INK)
    told = written([f"{float(np.nanmean(share)):.1%} kept, {heat.samples} samples"], 12, colour=PALE)
    return stacked([head, told, _coloured(share / most).resize((width, width), Image.Resampling.NEAREST)], 4)


def _coloured(values: NDArray[np.float64]) -> Image.Image:
    """[H, W] in 0..1 -> colours; grey where there is no value."""
    stops, at = np.asarray(_STOPS, float), np.linspace(0, 1, len(_STOPS))
    known = np.nan_to_num(values).clip(0, 1)
    colours = np.stack([np.interp(known, at, stops[:, channel]) for channel in range(3)], -1)
    colours[np.isnan(values)] = (205, 208, 214)
    return Image.fromarray(colours.round().astype(np.uint8))


def _scale(most: float) -> Image.Image:
    bar = _coloured(np.linspace(0, 1, 160)[None]).resize((160, 12))
    top = f"{math.ceil(most * 1000) / 10:g}%"
    return beside([written(["0%"], 11, colour=PALE), bar, written([f"{top} of the tokens there"], 11, colour=PALE)], 6)
