"""A new model family is one record: attaching, drawing, resizing and parts then work, and nothing else is changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dart_train import DART, UniformGrid, attach
from dart_train.models.families import Family, UnknownGridError, family, find_family
from dart_train.models.families.llava import SquareResizer, interpolate_position_embeddings, square_geometry
from dart_train.models.prompts import build_inputs, user_message
from dart_train.models.resize import accept_smaller_images, fewer_pixels, resulting_size
from dart_train.models.structure import part_of
from dart_train.models.token_places import locate_tokens
from dart_train.visualization import show
from tests.zoo import FAMILIES, make_image

TOKENS = (8, 8)


def made_up_tiles(config: Any, inputs: Any, rows: Any) -> list[list[tuple[int, int]]]:
    return [[TOKENS] for row in rows for _ in row.runs]


def record() -> Family:
    return Family(
        name="made up",
        model_types=("made_up",),
        tiles=made_up_tiles,
        geometry=square_geometry,
        processors=("MadeUpProcessor",),
        resizer=SquareResizer,
        accept_smaller_images=interpolate_position_embeddings,
        projectors=frozenset({"multi_modal_projector"}),
    )


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Family]]:
    known = dict(family._BY_MODEL_TYPE)
    monkeypatch.setattr(family, "_BY_MODEL_TYPE", known)
    yield known


def unknown_family() -> tuple[Any, Any]:
    """A model and a processor of a family that no record describes."""
    model, processor = FAMILIES["llava"].model(), copy.copy(FAMILIES["llava"].processor())
    model.config.model_type = "made_up"
    processor.__class__ = type("MadeUpProcessor", (type(processor),), {})
    return model, processor


def test_unknown_family_works_with_methods_without_a_grid(registry: dict[str, Family]) -> None:
    model, processor = unknown_family()
    inputs = build_inputs(processor, [[user_message("what", [make_image(1)])]])
    with attach(model, DART(keep=9)):
        model(**inputs)
    with attach(model, UniformGrid(keep=9)), pytest.raises(UnknownGridError, match="'made_up'"):
        model(**inputs)
    with pytest.raises(UnknownGridError, match="'made_up'"):
        locate_tokens(model, processor, inputs, [[make_image(1)]])
    with pytest.raises(ValueError, match="MadeUpProcessor: how its encoder takes smaller images is not known"):
        fewer_pixels(processor, 9)


@torch.no_grad()
def test_new_family_needs_one_record(registry: dict[str, Family]) -> None:
    family.register(record())
    model, processor = unknown_family()
    inputs = build_inputs(processor, [[user_message("what", [make_image(1)])]])
    with attach(model, UniformGrid(keep=9)) as attached:
        model(**inputs)
        assert attached.last is not None and list(attached.last.visual_after) == [9]
    assert len(locate_tokens(model, processor, inputs, [[make_image(1)]])[0]) == 64
    assert show(model, processor, [make_image(1)], "what", [UniformGrid(keep=9)], width=160).width == 2 * 160 + 3 * 16
    smaller = build_inputs(fewer_pixels(processor, 16), [[user_message("what", [make_image(1)])]])
    assert int((smaller["input_ids"] == model.config.image_token_id).sum()) == 16
    assert resulting_size(processor, 16, 64, 64).tokens == 16
    with accept_smaller_images(model):
        assert model(**smaller).logits.isfinite().all()
    part = part_of(model)
    assert part("model.multi_modal_projector.linear_1.weight") == "projector"
    assert part("model.vision_tower.vision_model.embeddings.patch_embedding.weight") == "vision"


def test_model_type_of_two_families_is_refused(registry: dict[str, Family]) -> None:
    family.register(record())
    with pytest.raises(ValueError, match=r"'llava' of family twin is registered for LLaVA-1\.5"):
        family.register(Family("twin", ("llava",), made_up_tiles))
    assert find_family("llava").name == "LLaVA-1.5"
