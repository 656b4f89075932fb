"""Images whose tiles are runs of visual tokens with text between them: which runs belong to one image."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...reduction.batch_layout import SampleLayout, Span
from .family import Rows, UnknownGridError
from .geometry import Tile


def runs_up_to_end_marker(rows: Rows) -> Iterator[list[Span]]:
    """The runs of each image, where a token of its own ends every image: the one after the last run of a row."""
    for row in rows:
        if not row.runs:
            continue
        marker, image = _token_at(row, row.runs[-1][1], "ends its last image"), list[Span]()
        for run in row.runs:
            image.append(run)
            if int(row.ids[run[1]]) == marker:
                yield image
                image = []


def runs_from_start_marker(rows: Rows) -> Iterator[list[Span]]:
    """The runs of each image, where a token of its own opens the first run of every image."""
    for row in rows:
        if not row.runs:
            continue
        marker, images = _token_at(row, row.runs[0][0] - 1, "opens its first image"), list[list[Span]]()
        for run in row.runs:
            if int(row.ids[run[0] - 1]) == marker:
                images.append([])
            images[-1].append(run)
        yield from images


def square_tile(tokens: int) -> Tile:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UnknownGridError(f"a run of {tokens} visual tokens is not a square")
    return side, side


def square_tiles_to_end_marker(rows: Rows) -> list[list[Tile]]:
    """Each run is one square tile."""
    return [[square_tile(stop - start) for start, stop in runs] for runs in runs_up_to_end_marker(rows)]


def _token_at(row: SampleLayout, place: int, what: str) -> int:
    if not 0 <= place < len(row.ids):
        raise UnknownGridError(f"the marker that {what} is missing from the sample: it begins or ends with an image")
    return int(row.ids[place])
