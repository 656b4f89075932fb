"""How many units of the user's own images a stage in the vision tower drops: `data check` with `reduction.tower`."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from ..models.towers import units_of_packed, units_of_patches
from ..reduction.tower import match_pixels
from .issues import BadRowError
from .sources import DataSource


@dataclass
class RepeatedUnits:
    """Of `images` images, drawn at random: their units, and how many of them repeat another one."""

    images: int = 0
    units: int = 0
    dropped: int = 0

    @property
    def dropped_share(self) -> float:
        return self.dropped / self.units if self.units else 0.0

    def to_dict(self, tolerance: float) -> dict[str, Any]:
        counts = {"images": self.images, "units": self.units, "dropped_share": self.dropped_share}
        return {"tolerance": tolerance, **counts}


def count_repeated_units(
    sources: Sequence[DataSource], processor: Any, tolerance: float, images: int = 200, progress: bool = True
) -> RepeatedUnits:
    """Images as the processor gives them to the tower. Rows of streaming sources, and images that cannot be read, are
    left out."""
    found = RepeatedUnits()
    bar = tqdm(total=images, desc="repeated pixels", disable=not progress)
    for image in _draw_images(sources, images):
        units, sizes = units_of_image(processor, image)
        chosen = match_pixels(units, sizes, tolerance)
        found.images, found.units = found.images + 1, found.units + len(units)
        found.dropped += len(units) - len(chosen.kept)
        bar.update()
    bar.close()
    return found


def units_of_image(processor: Any, image: Image.Image) -> tuple[Any, list[int]]:
    """[U, d] pixels of the units, and how many each tile of the image has."""
    output = processor.image_processor(images=[image], return_tensors="pt")
    pixels, grid = output["pixel_values"], output.get("image_grid_thw")
    if grid is not None:
        units = units_of_packed(pixels, processor.image_processor.merge_size**2)
        return units, [len(units)]
    patch = getattr(processor, "patch_size", None) or getattr(processor.image_processor, "patch_size", None)
    if not isinstance(patch, int):
        raise ValueError(f"{type(processor).__name__} has no patch_size: its images cannot be cut into units")
    tiles = pixels.flatten(0, 1) if pixels.ndim == 5 else pixels
    units = units_of_patches(tiles, patch, patch)
    return units, [len(units) // len(tiles)] * len(tiles)


def _draw_images(sources: Sequence[DataSource], number: int) -> Iterator[Image.Image]:
    """Of random rows, until there are enough."""
    readable = [source for source in sources if isinstance(source.rows, Dataset)]
    ends = list(itertools.accumulate(len(source.rows) for source in readable))
    total = ends[-1] if ends else 0
    drawn = 0
    for row in random.Random(0).sample(range(total), min(total, 10 * number)):
        at = bisect.bisect_right(ends, row)
        source, index = readable[at], row - (ends[at] - len(readable[at].rows))
        try:
            images = [source.store.open(image) for image in source.sample(source.rows[index], index).images]
        except BadRowError:
            continue
        for image in images:
            if drawn == number:
                return
            drawn += 1
            yield image
