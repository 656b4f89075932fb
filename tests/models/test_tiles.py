"""The tiles of images in the prompt, family by family, compared with the families' own processors and models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig

from dart_train.models.families import Tile, UnknownGridError, find_family
from dart_train.models.structure import find_parts
from dart_train.reduction.batch_layout import BatchLayout, SampleLayout
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, HYBRIDS, encode, make_image, make_video_batch

SIZES = [(64, 64), (64, 40), (32, 64), (48, 48), (97, 20), (20, 97), (61, 50), (33, 64), (200, 130), (16, 16)]
PIXELS = ("pixel_values", "pixel_values_videos")
VISUAL, VIDEO, TEXT, MARK = 1, 2, 10, 11


def encoded(name: str, *rows: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Each row: images of these sizes (width, height), then a question."""
    turns = [[{"type": "image", "image": make_image(number, size)} for number, size in enumerate(row)] for row in rows]
    question = {"type": "text", "text": "what"}
    return encode(name, [[{"role": "user", "content": [*images, question]}] for images in turns])


def tiles_of(name: str, inputs: dict[str, torch.Tensor]) -> tuple[list[list[Tile]], BatchLayout]:
    """Found from the inputs that the record reads; and the batch, with its images separated."""
    parts = find_parts((FAMILIES | HYBRIDS)[name].model())
    batch = BatchLayout.of(inputs["input_ids"], parts.visual_ids, inputs["attention_mask"])
    read = {key: value for key, value in inputs.items() if key in parts.family.reads}
    tiles = parts.family.tiles(parts.top.config, read, batch.rows())
    return tiles, batch.with_images([tokens(image) for image in tiles])


def row(text: str) -> SampleLayout:
    """`v` a visual token, `w` one of a video, `m` a marker, anything else text."""
    ids = torch.tensor([{"v": VISUAL, "w": VIDEO, "m": MARK}.get(letter, TEXT) for letter in text])
    return BatchLayout.of(ids[None], [VISUAL, VIDEO]).rows()[0]


def tokens(image: list[Tile]) -> int:
    return sum(rows * columns for rows, columns in image)


@pytest.mark.parametrize("name", FAMILIES)
def test_tiles_have_as_many_tokens_as_the_prompt(name: str) -> None:
    inputs = encoded(name, *([size] for size in SIZES), [], SIZES[:2], SIZES[2:5])
    tiles, batch = tiles_of(name, inputs)
    assert [len(images) for images in batch.images] == [*[1] * len(SIZES), 0, 2, 3]
    assert [tokens(image) for image in tiles] == [sum(b - a for a, b in spans) for row in batch.images for spans in row]
    runs = sum(len(row.runs) for row in batch.rows())
    assert runs == sum(map(len, tiles)) > len(tiles) if name in ("idefics3", "smolvlm") else runs == len(tiles)
    assert all(rows > 0 and columns > 0 for image in tiles for rows, columns in image)
    if name in ("internvl", "idefics3", "smolvlm"):
        shown = inputs["pixel_values"].flatten(0, -4)  # Idefics pads with black tiles
        assert sum(map(len, tiles)) == int(shown.flatten(1).any(1).sum())


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("video", [False, True])
def test_qwen_grids_are_those_of_its_positions(name: str, video: bool) -> None:
    inputs = make_video_batch(name) if video else encoded(name, [(64, 40)], [(48, 48), (32, 64)])
    tiles, batch = tiles_of(name, inputs)
    assert [len(images) for images in batch.images] == ([1, 1] if video else [1, 2])
    inputs = {key: value for key, value in inputs.items() if key not in PIXELS}
    positions = (FAMILIES | HYBRIDS)[name].model().model.get_rope_index(**inputs)[0]
    mine = [(row, column) for image in tiles for r, c in image for row in range(r) for column in range(c)]
    theirs = []
    for place, each in enumerate(batch.rows()):
        for start, stop in each.runs:
            at = positions[1:, place, start:stop]
            theirs += (at - at[:, :1]).T.tolist()
    assert mine == [tuple(place) for place in theirs]


def test_onevision_does_not_tile_several_images() -> None:
    tiles, _ = tiles_of("llava_onevision", encoded("llava_onevision", [(64, 64)] * 2, [(64, 64)]))
    assert tiles == [[(4, 4), (1, 1)]] * 2 + [[(4, 4), (8, 9)]]


@pytest.mark.parametrize(
    ("model_type", "inputs", "text", "message"),
    [
        ("llava_next", {}, "v" * 10, "image_sizes is missing"),
        ("llava_next", {"image_sizes": [(336, 672)]}, "v" * 576, r"make 1752 visual tokens, but the prompt has 576"),
        ("qwen2_vl", {}, "vvvv", "image_grid_thw is missing"),
        ("qwen2_vl", {"image_grid_thw": [[1, 4, 4]]}, "vvvvtvvvv", "image_grid_thw .* fewer grids"),
        ("qwen3_vl", {"image_grid_thw": [[1, 4, 4]]}, "wwww", "video_grid_thw is missing"),
        ("idefics3", {}, f"m{'v' * 16}m{'v' * 15}m", "a run of 15 visual tokens is not a square"),
        ("idefics3", {}, "mvvvv", "marker that ends its last image is missing"),
        ("another", {}, "vvvv", "no record .* 'another' models"),
    ],
)
def test_unknown_grid_is_refused(model_type: str, inputs: Any, text: str, message: str) -> None:
    config = LlavaNextConfig() if model_type == "llava_next" else config_of(model_type)
    with pytest.raises(UnknownGridError, match=message):
        find_family(model_type).tiles(config, inputs, [row(text)])


def config_of(model_type: str) -> Any:
    merge = SimpleNamespace(spatial_merge_size=2)
    return SimpleNamespace(model_type=model_type, vision_config=merge, image_token_id=VISUAL, video_token_id=VIDEO)


def test_images_and_videos_of_one_batch_keep_their_order() -> None:
    inputs = {"image_grid_thw": torch.tensor([[1, 4, 8], [1, 2, 2]]), "video_grid_thw": torch.tensor([[3, 4, 4]])}
    rows = [row("t" + "v" * 8 + "twwwwtwwwwtwwwwt"), row("ttt"), row("vt")]
    tiles = find_family("qwen3_vl").tiles(config_of("qwen3_vl"), inputs, rows)
    assert tiles == [[(2, 4)], [(2, 2)] * 3, [(1, 1)]]


@pytest.mark.parametrize(
    ("text", "images"),
    [
        ("mtvvvvmtt", [1]),
        ("mtvvvvmtvvvvntmtvvvvmtt", [3]),  # tiles, a line break, the overview
        ("mtvvvvmmtvvvvmt", [1, 1]),  # nothing between two images but their markers
        ("mtvvvvmtvvvvmttttmtvvvvmmtvvvvmtvvvvm", [2, 1, 2]),
    ],
)
def test_markers_separate_images(text: str, images: list[int]) -> None:
    assert [len(tiles) for tiles in find_family("smolvlm").tiles(None, {}, [row("tt"), row(text)])] == images


def test_every_test_family_has_a_record() -> None:
    assert all(find_family(FAMILIES[name].model().config.model_type).model_types for name in FAMILIES)
    assert set(FAMILIES_WITH_VIDEO) <= set(FAMILIES)
