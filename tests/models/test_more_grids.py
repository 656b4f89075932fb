"""Token grids of families without a tiny model of their own in `tests.zoo.FAMILIES`: where each token is on the image,
methods that use the grid, and fewer pixels, with the families' real processors and models."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dart_train import Pooling, UniformGrid, attach
from dart_train.models.families import Box, ImageInfo, TokenGrid, UnknownGridError, find_family
from dart_train.models.families.molmo2 import pooled_intervals
from dart_train.models.resize import accept_smaller_images, fewer_pixels, resulting_size
from dart_train.models.structure import find_parts, part_of
from dart_train.models.token_places import locate_tokens
from dart_train.reduction.batch_layout import BatchLayout
from dart_train.visualization import show
from tests.models.painting import (
    MOVED,
    ask,
    changes,
    model_without_tower_attention,
    painted,
    places,
    visual_tokens,
)
from tests.models.test_token_places import boxes_in
from tests.zoo import make_image
from tests.zoo.more_families import MORE_FAMILIES, encode_with
from tests.zoo.video import PatchedFrames

SHOWN = ((64, 64), (97, 50), (40, 128))
# Sizes at which nothing is resized: every pixel must be right. In the others only the middle of a token is.
EXACT = {"mistral3": (64, 64), "glm4v": (64, 64), "paligemma": (32, 32), "deepseek_vl": (32, 32), "lfm2_vl": (32, 32),
         "aya_vision": (64, 64), "ovis2": (64, 64), "llama4": (64, 32), "gemma4": (64, 64),
         "minicpmv4_6": (64, 64), "molmo2": (32, 32)}  # fmt: skip
RESIZED = [name for name, family in MORE_FAMILIES.items() if find_family(family.model_type).resizer]


def each(names: Any = MORE_FAMILIES) -> Any:
    needed = {name: MORE_FAMILIES[name].needs() for name in names}
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=pytest.mark.skipif(bool(what), reason=f"its image processor needs {what}"))
            for name, what in needed.items()
        ],
    )


@cache
def model_of(name: str) -> Any:
    return MORE_FAMILIES[name].model()


def tokens_of(name: str, batch: dict[str, torch.Tensor]) -> list[int]:
    visual = torch.isin(batch["input_ids"], torch.tensor(find_parts(model_of(name)).visual_ids))
    return visual.sum(1).tolist()


@each()
def test_tiles_have_as_many_tokens_as_the_prompt(name: str) -> None:
    rows = [[make_image(i, size)] for i, size in enumerate(SHOWN)]
    rows.append([make_image(7, (90, 41)), make_image(8, (50, 70))])
    batch = ask(name, rows)
    parts = find_parts(model_of(name))
    layout = BatchLayout.of(batch["input_ids"], parts.visual_ids, batch["attention_mask"])
    tiles = parts.family.tiles(parts.top.config, batch, layout.rows())
    sizes = [sum(rows * columns for rows, columns in image) for image in tiles]
    assert [len(images) for images in layout.with_images(sizes).images] == [1, 1, 1, 2]
    assert sum(sizes) == sum(tokens_of(name, batch))


@each()
def test_paint_in_a_box_changes_its_token_most(name: str) -> None:
    shown = [make_image(3, (90, 41)), make_image(4, (50, 70))]
    found = places(name, shown)
    chosen = [i for i, place in enumerate(found) if place.image == 1 and place.box][:: 9 if len(found) > 60 else 4]
    moved = changes(name, shown, 1, [box for i in chosen if (box := found[i].box)])
    for i, row in zip(chosen, moved.tolist(), strict=True):
        same = [j for j, place in enumerate(found) if (place.view, place.image) == (found[i].view, 1)]
        assert max(same, key=row.__getitem__) == i
        assert not any(row[j] > MOVED for j, place in enumerate(found) if place.image != 1)


@each(EXACT)
def test_paint_changes_exactly_the_tokens_whose_box_it_touches(name: str) -> None:
    shown = [make_image(3, EXACT[name])]
    found, boxes = places(name, shown), boxes_in(shown[0].size, 3, seed=1)
    moved = changes(name, shown, 0, boxes) > MOVED
    sharp = [i for i, place in enumerate(found) if place.view != "overview"]  # the overview is a smaller image
    assert any(found[i].box for i in sharp)
    for box, row in zip(boxes, moved.tolist(), strict=True):
        touched = [i for i in sharp if (at := found[i].box) and at.touches(box)]
        assert [i for i in sharp if row[i]] == touched


@each(["glm4v"])
def test_video_tokens_show_their_own_frames(name: str) -> None:
    """The frames of a video have the token of images: those between the markers of a video are its own."""
    frames, box = [make_image(40 + i, (32, 24)) for i in range(4)], Box(8, 0, 16, 8)
    batch, processor = ask_about_video(name, frames), MORE_FAMILIES[name].processor()
    found = locate_tokens(model_without_tower_attention(name), processor, batch, [[frames]])[0]
    before = visual_tokens(name, batch)
    for at in (0, 3):
        after = ask_about_video(name, [painted(f, box) if i == at else f for i, f in enumerate(frames)])
        moved = ((visual_tokens(name, after) - before).norm(dim=1) > MOVED).tolist()
        assert moved == [p.frame == at // 2 * 2 and bool(p.box and p.box.touches(box)) for p in found]


def ask_about_video(name: str, frames: list[Any]) -> dict[str, torch.Tensor]:
    processor = copy.copy(MORE_FAMILIES[name].processor())
    processor.video_processor = PatchedFrames({})
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "what moves"}]
    messages, options = [{"role": "user", "content": content}], {"tokenize": True, "return_dict": True}
    return dict(processor.apply_chat_template([messages], return_tensors="pt", **options))


def test_llava_with_the_encoder_of_pixtral_has_its_grids() -> None:
    tower = SimpleNamespace(model_type="pixtral", image_size=1024, patch_size=16)
    config, llava = SimpleNamespace(model_type="llava", vision_config=tower), find_family("llava")
    sizes = torch.tensor([[64, 96], [32, 16]])
    assert llava.tiles(config, {"image_sizes": sizes}, []) == [[(4, 6)], [(2, 1)]]
    info = ImageInfo(config, None, (97, 61), [(4, 6)])
    assert llava.geometry is not None and llava.accept_smaller_images is not None
    assert llava.geometry(info) == [TokenGrid.over(Box(0, 0, 97, 61), (4, 6), "image")]
    with llava.accept_smaller_images(SimpleNamespace(config=config)):
        pass


@each()
def test_boxes_of_a_view_cover_the_image_once(name: str) -> None:
    shown = [make_image(5, (97, 61)), make_image(6, (40, 70))]
    found = places(name, shown)
    for number, (width, height) in enumerate(one.size for one in shown):
        for view in {place.view for place in found if place.image == number and place.box}:
            boxes = [p.box for p in found if (p.image, p.view) == (number, view) and p.box is not None]
            assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height for b in boxes)
            assert sum((b.right - b.left) * (b.bottom - b.top) for b in boxes) == pytest.approx(width * height)


@each()
def test_grid_methods_and_drawing(name: str) -> None:
    model, processor, image = model_of(name), MORE_FAMILIES[name].processor(), make_image(1, (70, 50))
    batch = ask(name, [[image], [make_image(2, (40, 60))]])
    for method in (UniformGrid(keep=4), Pooling(keep=4)):
        with torch.no_grad(), attach(model, method) as attached:
            assert model(**batch).logits.isfinite().all()
        assert attached.last is not None and list(attached.last.visual_after) == [4, 4]
    assert show(model, processor, [image], "what is it", [UniformGrid(keep=4)], width=120).width > 120


@each(RESIZED)
@pytest.mark.parametrize("keep", [4, 0.3])
def test_smaller_images_give_the_resulting_size_and_the_model_runs(name: str, keep: int | float) -> None:
    full, model = MORE_FAMILIES[name].processor(), model_of(name)
    images = [make_image(i, size) for i, size in enumerate(SHOWN)]
    before = [resulting_size(full, 1.0, image.height, image.width).tokens for image in images]
    assert before == tokens_of(name, ask(name, [[image] for image in images]))
    expected = [resulting_size(full, keep, image.height, image.width).tokens for image in images]
    assert all(few <= many for few, many in zip(expected, before, strict=True)) and sum(expected) < sum(before)
    batch = encode_with(fewer_pixels(full, keep), [[image] for image in images])
    assert tokens_of(name, batch) == expected
    with torch.no_grad(), accept_smaller_images(model):
        assert model(**batch).logits.isfinite().all()


@each()
def test_parts_are_named(name: str) -> None:
    model = model_of(name)
    part = part_of(model)
    found = {part(parameter) for parameter, _ in model.named_parameters()}
    assert found == {"vision", "projector", "language"}


@pytest.mark.parametrize(
    ("model_type", "inputs", "message"),
    [
        ("mistral3", {}, "image_sizes is missing"),
        ("molmo2", {}, "image_grids is missing"),
        ("gemma4", {}, "image_position_ids is missing"),
        ("lfm2_vl", {}, "spatial_shapes is missing"),
        ("minicpmv4_6", {}, "target_sizes is missing"),
        ("ovis2", {}, "marker that ends its last image is missing"),
        ("aya_vision", {}, "marker that ends its last image is missing"),
        ("llama4", {}, "marker that ends its last image is missing"),
    ],
)
def test_unknown_grid_is_refused(model_type: str, inputs: Any, message: str) -> None:
    rows = BatchLayout.of(torch.tensor([[5, 1, 1, 1, 1]]), [1]).rows()
    with pytest.raises(UnknownGridError, match=message):
        find_family(model_type).tiles(_CONFIG, inputs, rows)


_TOWER = SimpleNamespace(image_size=32, patch_size=4, pooling_kernel_size=2)
_CONFIG = SimpleNamespace(downsample_factor=2, downsample_mode="16x", vision_config=_TOWER)


def test_tokens_at_the_edge_show_fewer_patches() -> None:
    """27 patches pooled two by two: 14 tokens, the last of one patch."""
    line = pooled_intervals((0, 27), 27, 14, 2)
    assert line[0] == (0, 2) and line[13] == (26, 27)


def test_encoders_of_one_size_are_refused() -> None:
    for model_type, reason in (("deepseek_vl_hybrid", "second encoder"), ("minicpm_ocr", "resizes every image")):
        family = find_family(model_type)
        assert family.resizer is None and reason in family.no_resizer
