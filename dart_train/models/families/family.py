"""The record of a model family, and the registry that finds it by model type or processor class.

A new family is one file with one record, and one import in `families/__init__.py`. A model of no known family takes
the generic path: everything that does not need the image's grid works with every Hugging Face decoder (see
`dart_train.models.structure`); `dart_train.check` verifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ...reduction.batch_layout import SampleLayout
from .geometry import ImageInfo, Tile, TokenGrid
from .resizer import Resizer

Inputs = Mapping[str, Any]
Rows = Sequence[SampleLayout]


class UnknownGridError(ValueError):
    """The grid of an image's tokens is not known."""


@dataclass(frozen=True)
class Family:
    """Everything that is known of one family.

    tiles(config, inputs, rows): the tiles of each image of the batch, in order; all tiles of an image, and all frames
        of a video, are one image.
    reads: the model inputs that `tiles` uses, on the host.
    geometry(info): one `TokenGrid` for each tile of an image; None where it is not known.
    video_geometry: `geometry` also handles videos; `no_video` is the reason why no data may have videos.
    processors: class names of the family's processors; `resizer` makes their images smaller for fewer tokens, and
        `no_resizer` is the reason why a family has none.
    accept_smaller_images(model): a context in which the model takes images of the resizer's sizes.
    projectors: names of the modules between the vision encoder and the language model.
    own_positions: the model computes its position ids itself, from the grid; see `ModelParts.own_positions`.
    bidirectional_images: image tokens attend to each other in both directions.
    """

    name: str
    model_types: tuple[str, ...]
    tiles: Callable[[Any, Inputs, Rows], list[list[Tile]]]
    reads: tuple[str, ...] = ()
    geometry: Callable[[ImageInfo], list[TokenGrid]] | None = None
    video_geometry: bool = False
    no_video: str = ""
    processors: tuple[str, ...] = ()
    resizer: type[Resizer] | None = None
    no_resizer: str = ""
    accept_smaller_images: Callable[[Any], AbstractContextManager[None]] | None = None
    projectors: frozenset[str] = frozenset()
    own_positions: bool = False
    bidirectional_images: bool = False


def _unknown_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    raise UnknownGridError(
        f"no record in dart_train.models.families describes the grid of {config.model_type!r} models"
    )


GENERIC = Family("generic", (), _unknown_tiles, own_positions=True)
_BY_MODEL_TYPE: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes the family known. A model type can belong to one family only."""
    for model_type in family.model_types:
        other = _BY_MODEL_TYPE.setdefault(model_type, family)
        if other is not family:
            raise ValueError(f"model type {model_type!r} of family {family.name} is registered for {other.name}")
    return family


def families() -> Iterator[Family]:
    """Every registered family, in the order of registration."""
    yield from dict.fromkeys(_BY_MODEL_TYPE.values())


def find_family(model_type: str) -> Family:
    return _BY_MODEL_TYPE.get(model_type, GENERIC)


def family_of_processor(processor: Any) -> Family:
    name = type(processor).__name__
    return next((family for family in families() if name in family.processors), GENERIC)


def projector_names(family: Family) -> frozenset[str]:
    """The names of the family's projectors, or, for a model of no known family, those of all families."""
    return family.projectors or frozenset().union(*(known.projectors for known in families()))


def count_tokens(rows: Rows) -> int:
    return sum(row.tokens() for row in rows)


def require_input(inputs: Inputs, name: str) -> list[Any]:
    value = inputs.get(name)
    if value is None:
        raise UnknownGridError(f"{name} is missing from the model's inputs")
    return list(value.tolist()) if hasattr(value, "tolist") else list(value)
