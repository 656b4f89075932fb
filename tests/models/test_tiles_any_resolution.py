"""Any-resolution tiles at the sizes of the published models, compared with what the model itself packs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaNextConfig, LlavaOnevisionConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, get_anyres_image_grid_shape
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from dart_train.models.families import find_family
from dart_train.reduction.batch_layout import SampleLayout


def prompt(tokens: int) -> list[SampleLayout]:
    """A row with nothing but visual tokens, all in one run."""
    return [SampleLayout(torch.ones(tokens, dtype=torch.long), ((0, tokens),))]


def packed(config: Any, size: tuple[int, int]) -> torch.Tensor:
    """[T, 3] what the model makes of an image of `size` (height, width), whose features are (1, row, column)
    of the large image and (2, 0, 0) of the overview; a line break is (0, 0, 0)."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    tall, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
    row, column = torch.meshgrid(torch.arange(tall * side), torch.arange(wide * side), indexing="ij")
    large = torch.stack([torch.ones_like(row), row, column], -1).float()
    large = large.view(tall, side, wide, side, 3).transpose(1, 2).reshape(-1, side * side, 3)
    overview = torch.tensor([2.0, 0, 0]).expand(1, side * side, 3)
    model, option = {
        "llava_next": (LlavaNextModel, "vision_feature_select_strategy"),
        "llava_onevision": (LlavaOnevisionModel, "vision_aspect_ratio"),
    }[config.model_type]
    options = {option: getattr(config, option), "image_newline": torch.zeros(3)}
    features = [torch.cat([overview, large])]
    return model.pack_image_features(SimpleNamespace(config=config), features, [size], **options)[0][0]


CONFIGS = (LlavaNextConfig(), LlavaOnevisionConfig(), LlavaOnevisionConfig(vision_aspect_ratio="anyres_max_4"))
HARD = [(336, 336), (1, 1), (1000, 337), (337, 1000), (2000, 130), (384, 2304), (2304, 2304), (1153, 769)]


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 2),
    size=st.one_of(st.sampled_from(HARD), st.tuples(st.integers(100, 2500), st.integers(100, 2500))),
)
def test_any_resolution_grid_equals_the_one_of_the_model(which: int, size: tuple[int, int]) -> None:
    """At the sizes of the published models."""
    config = CONFIGS[which]
    sequence = packed(config, size)
    inputs = {"image_sizes": torch.tensor([size])}
    (((side, other), (rows, columns)),) = find_family(config.model_type).tiles(config, inputs, prompt(len(sequence)))
    assert side == other and (sequence[:, 0] == 2).sum() == side * side
    large = sequence[side * side :].view(rows, columns, 3)
    assert (large[:, -1] == 0).all() and (large[:, :-1, 0] > 0.99).all()
    assert torch.allclose(large[:, :-1, 1], large[:, :1, 1].expand(rows, columns - 1), atol=1e-3)
    assert torch.allclose(large[:, :-1, 2], large[:1, :-1, 2].expand(rows, columns - 1), atol=1e-3)
    assert (large[1:, 0, 1] > large[:-1, 0, 1]).all() and (large[0, 1:-1, 2] > large[0, :-2, 2]).all()


def test_onevision_limit_reduces_large_images() -> None:
    sizes = torch.tensor([(2304, 2304)])
    tiles = find_family("llava_onevision").tiles(CONFIGS[1], {"image_sizes": sizes}, prompt(729 + 81 * 82))
    assert tiles == [[(27, 27), (81, 82)]]  # of 162 x 162


def test_adjacent_images_are_one_run() -> None:
    sizes = torch.tensor([(336, 672), (672, 336)])
    tiles = find_family("llava_next").tiles(CONFIGS[0], {"image_sizes": sizes}, prompt(2 * 576 + 24 * 49 + 48 * 25))
    assert tiles == [[(24, 24), (24, 49)], [(24, 24), (48, 25)]]
