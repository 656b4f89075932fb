"""fewer_pixels: about as many tokens as the budget, as far as a family's encoder allows; the rest is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dart_train.models.families.llava import interpolate_position_embeddings
from dart_train.models.families.resizer import fit_grid
from dart_train.models.resize import accept_smaller_images, fewer_pixels, resulting_size
from tests.zoo import FAMILIES, make_image
from tests.zoo.processors import TILE

SIZES = ((64, 64), (64, 40), (32, 64))  # (width, height)
POSSIBLE = [name for name in FAMILIES if name != "gemma3"]
TILED = ["llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm"]


@cache
def model_of(name: str) -> Any:
    return FAMILIES[name].model()


def encoded(processor: Any, sizes: tuple[tuple[int, int], ...]) -> dict[str, torch.Tensor]:
    question = {"type": "text", "text": "?"}
    rows = [
        [{"role": "user", "content": [{"type": "image", "image": make_image(i, size)}, question]}]
        for i, size in enumerate(sizes)
    ]
    options = {"padding": True, "padding_side": "left"}
    batch = processor.apply_chat_template(
        rows, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=options
    )
    return dict(batch)


def tokens(name: str, batch: dict[str, torch.Tensor]) -> list[int]:
    visual = batch["input_ids"] == model_of(name).config.image_token_id
    return visual.sum(1).tolist()


@pytest.mark.parametrize("name", POSSIBLE)
@pytest.mark.parametrize("keep", [4, 40, 0.25])
def test_smaller_images_give_the_resulting_size_and_the_model_runs(name: str, keep: int | float) -> None:
    full, model = FAMILIES[name].processor(), model_of(name)
    shrunk = fewer_pixels(full, keep)
    batch = encoded(shrunk, SIZES)
    expected = [resulting_size(full, keep, height, width) for width, height in SIZES]
    assert tokens(name, batch) == [size.tokens for size in expected]
    with torch.no_grad(), accept_smaller_images(model):
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("keep", [9, 16, 25, 0.25])
def test_budget_is_met_within_a_quarter_where_any_size_is_possible(name: str, keep: int | float) -> None:
    processor = FAMILIES[name].processor()
    for width, height in SIZES:
        before = resulting_size(processor, 1.0, height, width).tokens
        wanted = min(before, keep if isinstance(keep, int) else round(before * keep))
        assert 0.75 * wanted <= resulting_size(processor, keep, height, width).tokens <= wanted


@pytest.mark.parametrize("name", TILED)
def test_tiled_families_drop_tiles_down_to_one(name: str) -> None:
    processor = FAMILIES[name].processor()
    full, fewer, least = (resulting_size(processor, keep, 64, 64).tokens for keep in (1.0, 50, 1))
    assert least <= fewer <= 50 < full
    one_tile = {"llava_next": 16 + 16 + 4, "llava_onevision": 16 + 16 + 4}.get(name, 16)
    assert least == one_tile
    assert tokens(name, encoded(fewer_pixels(processor, 1), ((64, 64),))) == [one_tile]


@pytest.mark.parametrize("name", POSSIBLE)
def test_image_within_the_budget_is_unchanged(name: str) -> None:
    processor = FAMILIES[name].processor()
    plain, same = encoded(processor, SIZES), encoded(fewer_pixels(processor, 1000), SIZES)
    assert plain.keys() == same.keys()
    assert torch.equal(plain["input_ids"], same["input_ids"])
    torch.testing.assert_close(same["pixel_values"], plain["pixel_values"], rtol=0, atol=0.05)


@pytest.mark.parametrize("name", POSSIBLE)
def test_image_is_resized_and_not_cropped(name: str) -> None:
    """A bright border is still in it."""
    dark = Image.new("RGB", (64, 64))
    framed = ImageOps.expand(Image.new("RGB", (32, 32)), 16, "white")
    shrunk = fewer_pixels(FAMILIES[name].processor(), 16)
    values = [shrunk.image_processor([image], return_tensors="pt")["pixel_values"] for image in (dark, framed)]
    assert values[1].mean() - values[0].mean() > 0.8


@pytest.mark.parametrize("name", POSSIBLE)
def test_original_processor_is_unchanged(name: str) -> None:
    processor = FAMILIES[name].processor()
    before, kind = processor.image_processor.to_dict(), type(processor.image_processor)
    fewer_pixels(processor, 4)
    assert processor.image_processor.to_dict() == before
    assert type(processor.image_processor) is kind


def test_llava_needs_interpolated_position_embeddings() -> None:
    model, batch = model_of("llava"), encoded(fewer_pixels(FAMILIES["llava"].processor(), 16), SIZES)
    with pytest.raises(ValueError, match="doesn't match model"):
        model(**batch)
    plain = encoded(FAMILIES["llava"].processor(), ((TILE, TILE),))
    with torch.no_grad():
        expected = model(**plain).logits
        with accept_smaller_images(model):
            torch.testing.assert_close(model(**plain).logits, expected)
    assert not model.model.vision_tower._forward_pre_hooks


def test_encoders_of_one_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Gemma3Processor.*projector pools"):
        fewer_pixels(FAMILIES["gemma3"].processor(), 8)
    with pytest.raises(ValueError, match="cannot interpolate"), interpolate_position_embeddings(model_of("qwen2_vl")):
        pass
    with pytest.raises(ValueError, match="object: how its encoder takes smaller images is not known"):
        fewer_pixels(object(), 8)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, True, "many"])
def test_invalid_budgets_are_refused(keep: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of tokens"):
        fewer_pixels(FAMILIES["qwen2_vl"].processor(), keep)


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 1500))
def test_fit_grid_uses_most_cells_and_keeps_the_aspect_ratio(height: int, width: int, cells: int) -> None:
    rows, columns = fit_grid(height, width, cells)
    assert rows >= 1 and columns >= 1 and rows * columns <= cells
    if cells >= 25 and 0.5 <= height / width <= 2:
        assert rows * columns >= 0.8 * cells
        assert 1 / 1.5 <= (rows * width) / (columns * height) <= 1.5
