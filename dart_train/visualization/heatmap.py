"""Where on the image tokens are kept, over many samples: a map for each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..models.families import TokenPlace
from .draw import INK, PALE, ellipsize, hstack, side_by_side, text_image, vstack

CELLS = 24
_STOPS = ((13, 8, 60), (92, 20, 120), (190, 55, 95), (245, 130, 50), (252, 230, 130))  # from 0 to 1
_NO_VALUE = (205, 208, 214)


class HeatMap:
    """Sums, on cells of the unit square that every image is stretched to, how much of what tokens cover there was kept.
    In a cell that several tokens cover (tiles and an overview) each counts by the part of it that it covers."""

    def __init__(self, cells: int = CELLS) -> None:
        self.cells = cells
        self.covered, self.kept = np.zeros((cells, cells)), np.zeros((cells, cells))
        self.samples = 0

    def add(self, places: Sequence[TokenPlace], kept: Sequence[bool], sizes: Sequence[tuple[int, int]]) -> None:
        """One sample. kept: of each visual token; sizes: (width, height) of each image."""
        if len(kept) != len(places):
            raise ValueError(f"kept has {len(kept)} entries; expected one for each of the {len(places)} visual tokens")
        for place, keep in zip(places, kept, strict=True):
            if place.box is not None:
                width, height = sizes[place.image]
                columns = self._coverage(place.box.left / width, place.box.right / width)
                part = np.outer(self._coverage(place.box.top / height, place.box.bottom / height), columns)
                self.covered += part
                self.kept += part * bool(keep)
        self.samples += 1

    def share(self) -> NDArray[np.float64]:
        """[cells, cells] in 0..1, NaN where no token ever was."""
        with np.errstate(invalid="ignore"):
            share: NDArray[np.float64] = np.where(self.covered > 0, self.kept / self.covered, np.nan)
        return share

    def _coverage(self, start: float, stop: float) -> NDArray[np.float64]:
        """[cells] how much of each cell the interval covers."""
        edges = np.arange(self.cells + 1) / self.cells
        return (np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)).clip(0) * self.cells


def draw_heat_maps(
    maps: Mapping[str, HeatMap], heading: str = "Where tokens are kept", width: int = 220
) -> Image.Image:
    """A panel for each method, all in one scale, which is drawn below."""
    shares = {name: one.share() for name, one in maps.items() if one.samples}
    if not shares:
        raise ValueError("no sample was added to any heat map: there is nothing to draw")
    top = max(float(np.nanmax(share)) for share in shares.values()) or 1.0
    panels = [_panel(name, maps[name].samples, share, top, width) for name, share in shares.items()]
    return side_by_side(panels, heading, bottom=_scale(top))


def _panel(name: str, samples: int, share: NDArray[np.float64], top: float, width: int) -> Image.Image:
    head = text_image([ellipsize(name, width, 16, bold=True)], 16, bold=True, colour=INK)
    caption = text_image([f"{float(np.nanmean(share)):.1%} kept, {samples} samples"], 12, colour=PALE)
    return vstack([head, caption, _colour(share / top).resize((width, width), Image.Resampling.NEAREST)], 4)


def _colour(values: NDArray[np.float64]) -> Image.Image:
    """[H, W] in 0..1 -> colours; grey where there is no value."""
    stops, positions = np.asarray(_STOPS, float), np.linspace(0, 1, len(_STOPS))
    known = np.nan_to_num(values).clip(0, 1)
    colours = np.stack([np.interp(known, positions, stops[:, channel]) for channel in range(3)], -1)
    colours[np.isnan(values)] = _NO_VALUE
    return Image.fromarray(colours.round().astype(np.uint8))


def _scale(top: float) -> Image.Image:
    bar = _colour(np.linspace(0, 1, 160)[None]).resize((160, 12))
    last = f"{math.ceil(top * 1000) / 10:g}% of the tokens there"
    return hstack([text_image(["0%"], 11, colour=PALE), bar, text_image([last], 11, colour=PALE)], 6)
