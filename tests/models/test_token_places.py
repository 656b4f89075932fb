"""Which rectangle of the image a token shows: the image is painted on, and the model's tokens that change are compared
with the places."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from dart_train.models.families import Box, TokenPlace, UnknownGridError
from dart_train.models.families.llava_next import _line
from dart_train.models.token_places import locate_tokens
from tests.models.painting import (
    MOVED,
    ask,
    changes,
    model_without_tower_attention,
    painted,
    places,
    video_inputs,
    visual_tokens,
)
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, make_image
from tests.zoo.processors import TILE

# Sizes at which nothing is resized before the tiles: every pixel must be right.
EXACT = {"llava": (32, 32), "gemma3": (32, 32)}
CROPS = ("llava",)


def boxes_in(size: tuple[int, int], number: int, seed: int) -> list[Box]:
    chance, (width, height) = random.Random(seed), size
    corners = [(chance.randrange(width - 3), chance.randrange(height - 3)) for _ in range(number)]
    return [Box(x, y, min(width, x + chance.randrange(2, 14)), min(height, y + chance.randrange(2, 14)))
            for x, y in corners]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_paint_changes_exactly_the_tokens_whose_box_it_touches(name: str) -> None:
    shown = [make_image(3, EXACT.get(name, (64, 64)))]
    found, boxes = places(name, shown), boxes_in(shown[0].size, 4, seed=1)
    moved = changes(name, shown, 0, boxes) > MOVED
    sharp = [i for i, place in enumerate(found) if place.view != "overview"]  # the overview is a smaller image
    assert any(found[i].box for i in sharp)
    for box, row in zip(boxes, moved.tolist(), strict=True):
        touched = [i for i in sharp if (at := found[i].box) and at.touches(box)]
        assert [i for i in sharp if row[i]] == touched


@pytest.mark.parametrize("sizes", [[(97, 150)], [(90, 41), (50, 70)]], ids=["odd", "two"])
@pytest.mark.parametrize("name", FAMILIES)
def test_paint_in_a_box_changes_its_token_most(name: str, sizes: list[tuple[int, int]]) -> None:
    shown = [make_image(3 + i, size) for i, size in enumerate(sizes)]
    found, number = places(name, shown), len(shown) - 1
    chosen = [i for i, place in enumerate(found) if place.image == number and place.box][:: 6 if len(found) > 60 else 3]
    moved = changes(name, shown, number, [box for i in chosen if (box := found[i].box)])
    for i, row in zip(chosen, moved.tolist(), strict=True):
        same = [j for j, place in enumerate(found) if (place.view, place.image) == (found[i].view, number)]
        assert max(same, key=row.__getitem__) == i
        assert not any(row[j] > MOVED for j, place in enumerate(found) if place.image != number)


@pytest.mark.parametrize("name", FAMILIES)
def test_boxes_of_a_view_cover_the_image_once(name: str) -> None:
    """Except for cropped parts, and for less than a token at the edges, where LLaVA-NeXT removes padding by rows."""
    shown = [make_image(5, (97, 61)), make_image(6, (40, 70))][: 1 if name == "llava_onevision" else 2]
    found = places(name, shown)
    for number, (width, height) in enumerate(one.size for one in shown):
        for view in {place.view for place in found if place.image == number and place.box}:
            boxes = [p.box for p in found if (p.image, p.view) == (number, view) and p.box is not None]
            assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height for b in boxes)
            left, top = min(b.left for b in boxes), min(b.top for b in boxes)
            right, bottom = max(b.right for b in boxes), max(b.bottom for b in boxes)
            area = sum((b.right - b.left) * (b.bottom - b.top) for b in boxes)
            assert area == pytest.approx((right - left) * (bottom - top))
            if name not in CROPS:
                across, down = max(b.right - b.left for b in boxes), max(b.bottom - b.top for b in boxes)
                assert max(left, width - right) < across and max(top, height - bottom) < down
                assert view == "tiles" or area == pytest.approx(width * height)


def test_cropped_parts_have_no_token() -> None:
    shown = [make_image(3, (96, 32))]
    boxes = [place.box for place in places("llava", shown) if place.box]
    assert (min(b.left for b in boxes), max(b.right for b in boxes)) == (32, 64)
    assert float(changes("llava", shown, 0, [Box(0, 0, 29, 32), Box(67, 0, 96, 32)]).max()) < MOVED


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_video_tokens_show_their_own_frames(name: str) -> None:
    """Two frames together in Qwen-VL; one in LLaVA-OneVision, whose line break at the end shows none."""
    together, size = (1, (TILE, TILE)) if name == "llava_onevision" else (2, (32, 24))
    frames = [make_image(40 + i, size) for i in range(4)]
    batch = video_inputs(name, [frames])
    model, processor = model_without_tower_attention(name), FAMILIES[name].processor()
    found = locate_tokens(model, processor, batch, [[frames]])[0]
    before = visual_tokens(name, batch)
    for at in (0, 3):
        after = [painted(f, Box(8, 0, 16, 8)) if i == at else f for i, f in enumerate(frames)]
        moved = ((visual_tokens(name, video_inputs(name, [after])) - before).norm(dim=1) > MOVED).tolist()
        assert moved == [
            p.frame == at // together * together and bool(p.box and p.box.touches(Box(8, 0, 16, 8))) for p in found
        ]


def test_batch_rows_have_their_own_places() -> None:
    shown = [[make_image(1, (64, 40))], [], [make_image(2, (32, 64)), make_image(3, (50, 50))]]
    model, processor = model_without_tower_attention("qwen2_vl"), FAMILIES["qwen2_vl"].processor()
    together = locate_tokens(model, processor, ask("qwen2_vl", shown), shown)
    assert together == [locate_tokens(model, processor, ask("qwen2_vl", [row]), [row])[0] for row in shown]


def test_pixels_after_the_last_patch_have_no_token() -> None:
    """384 pixels and patches of 14: each tile ends with six pixels that no patch covers."""
    line = _line((0, 54), 54, 384, 14, lambda x: x)
    assert line[0] == (0, 14) and line[26] == (364, 378) and line[27] == (384, 398) and line[53] == (748, 762)


def test_unknown_places_are_refused() -> None:
    shown, processor = [make_image(1)], FAMILIES["llava"].processor()
    batch = ask("llava", [shown])
    with pytest.raises(UnknownGridError, match="2 images were given, but the prompt has 1"):
        locate_tokens(model_without_tower_attention("llava"), processor, batch, [shown * 2])
    with pytest.raises(ValueError, match="images of 2 samples were given for a batch of 1"):
        locate_tokens(model_without_tower_attention("llava"), processor, batch, [shown, shown])
    unknown = FAMILIES["llava"].model()
    unknown.config.model_type = "strange"
    with pytest.raises(UnknownGridError, match="model_type 'strange'"):
        locate_tokens(unknown, processor, batch, [shown])


def test_line_breaks_have_no_box() -> None:
    """LLaVA-NeXT: one after each row of the large image, and nowhere else."""
    found = places("llava_next", [make_image(3, (64, 64))])
    large: list[TokenPlace] = found[16:]
    assert [i for i, place in enumerate(large) if place.box is None] == [9 * row + 8 for row in range(8)]
    assert all(place.box for place in found[:16])


def test_painted_patch_changes_one_token_only() -> None:
    """The assumption of the tests above: without attention, paint in one patch changes no other."""
    shown = [Image.new("RGB", (32, 32), (90, 120, 60))]
    moved = changes("llava", shown, 0, [Box(0, 0, 4, 4)])
    assert int((moved > MOVED).sum()) == 1 and torch.isfinite(moved).all()
