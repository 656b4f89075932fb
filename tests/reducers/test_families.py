"""How pictures lie in the prompt, family by family: held against the families' own processors and models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig

from dart_train.attach.anatomy import dissect
from dart_train.families import NoGrid, Tile, family_of
from dart_train.layout import Batch
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, encode, make_video_batch, picture

SIZES = [(64, 64), (64, 40), (32, 64), (48, 48), (97, 20), (20, 97), (61, 50), (33, 64), (200, 130), (16, 16)]
Runs = list[tuple[int, int]]


def encoded(name: str, *rows: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Each row: pictures of these sizes (width, height), then a question."""
    turns = [[{"type": "image", "image": picture(number, size)} for number, size in enumerate(row)] for row in rows]
    question = {"type": "text", "text": "what"}
    return encode(name, [[{"role": "user", "content": [*images, question]}] for images in turns])


def tiles_of(name: str, inputs: dict[str, torch.Tensor]) -> tuple[list[list[Tile]], list[Runs]]:
    parts = dissect(FAMILIES[name].model())
    batch = Batch.of(inputs["input_ids"], parts.visual_ids, inputs["attention_mask"])
    runs = [list(images) for images in batch.images]
    lengths = [stop - start for row in runs for start, stop in row]
    return parts.family.tiles(parts.top.config, inputs, lengths), runs


def tokens(image: list[Tile]) -> int:
    return sum(rows * columns for rows, columns in image)


@pytest.mark.parametrize("name", FAMILIES)
def test_tiles_have_as_many_tokens_as_the_prompt(name: str) -> None:
    inputs = encoded(name, *([size] for size in SIZES), [], SIZES[:2], SIZES[2:5])
    tiles, runs = tiles_of(name, inputs)
    lengths = [stop - start for row in runs for start, stop in row]
    assert [tokens(image) for image in tiles] == lengths  # a picture is a run of tokens (of a tile: Idefics)
    assert all(rows > 0 and columns > 0 for image in tiles for rows, columns in image)
    if name in ("internvl", "idefics3", "smolvlm"):
        shown = inputs["pixel_values"].flatten(0, -4)  # Idefics pads with black tiles
        assert sum(map(len, tiles)) == int(shown.flatten(1).any(1).sum())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("video", [False, True])
def test_qwen_grids_are_those_of_its_positions(name: str, video: bool) -> None:
    inputs = make_video_batch(name) if video else encoded(name, [(64, 40)], [(48, 48), (32, 64)])
    tiles, runs = tiles_of(name, inputs)
    pixels = ("pixel_values", "pixel_values_videos")
    positions = (
        FAMILIES[name]
        .model()
        .model.get_rope_index(**{key: value for key, value in inputs.items() if key not in pixels})[0]
    )
    mine = [(row, column) for image in tiles for r, c in image for row in range(r) for column in range(c)]
    theirs = []
    for row, images in enumerate(runs):
        for start, stop in images:
            at = positions[1:, row, start:stop]
            theirs += (at - at[:, :1]).T.tolist()
    assert mine == [tuple(place) for place in theirs]


def test_onevision_does_not_tile_several_images() -> None:
    tiles, _ = tiles_of("llava_onevision", encoded("llava_onevision", [(64, 64)] * 2, [(64, 64)]))
    assert tiles == [[(4, 4), (1, 1)]] * 2 + [[(4, 4), (8, 9)]]


@pytest.mark.parametrize(
    ("model_type", "inputs", "runs", "said"),
    [
        ("llava_next", {}, [10], "image_sizes is missing"),
        ("llava_next", {"image_sizes": [(336, 672)]}, [576], r"make 1752 visual tokens, but 576"),
        ("qwen2_vl", {}, [4], "image_grid_thw is missing"),
        ("qwen2_vl", {"image_grid_thw": [[1, 4, 4]], "video_grid_thw": [[1, 4, 4]]}, [4, 4], "order"),
        ("idefics3", {}, [16, 15], "15 visual tokens in a row are not a square"),
        ("another", {}, [4], "no record .* model_type"),
    ],
)
def test_an_unknown_grid_is_refused(model_type: str, inputs: Any, runs: list[int], said: str) -> None:
    config = (
        LlavaNextConfig()
        if model_type == "llava_next"
        else SimpleNamespace(model_type=model_type, vision_config=SimpleNamespace(spatial_merge_size=2))
    )
    with pytest.raises(NoGrid, match=said):
        family_of(model_type).tiles(config, inputs, runs)


def test_every_tiny_family_has_a_record() -> None:
    assert all(family_of(FAMILIES[name].model().config.model_type).model_types for name in FAMILIES)
    assert set(FAMILIES_WITH_VIDEO) <= set(FAMILIES)
