"""The laws on rows with videos: keep-all is the plain model, a batch is its rows one by one, packed rows are the padded
batch. That the reduced forward is the masked one: test_integrations.py, test_images.py."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, KeepAll, Pooling, Reducer, UniformGrid, attach
from dart_train.conformance.packed import without_padding
from dart_train.models.structure import find_parts
from dart_train.reduction.batch_layout import BatchLayout
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import KERNELS, ROUNDING, model_of, new_tokens
from tests.laws.test_keep_all import gradients
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, make_image, make_video_batch
from tests.zoo.video import clip, frames_of, metadata, video_processor_of

PACKED: dict[str, Any] = {
    "dart": DART(keep=8),
    "dart per image": DART(keep=6, per="image"),
    "fastv": FastV(keep=8),
    "uniform": UniformGrid(keep=0.3, per="image"),
    "pooling": Pooling(keep=9),
    "two stages": [DART(layer=1, keep=12), FastV(layer=3, keep=5)],
}


@cache
def batch_of(name: str, side: str = "right") -> dict[str, Tensor]:
    return make_video_batch(name, padding_side=side, labels=True)


@cache
def mixed_batch(name: str) -> dict[str, Tensor]:
    """Two videos and an image in one row, side by side; labels at its end."""
    turn = {"role": "user", "content": [{"type": kind} for kind in ("video", "video", "image")]}
    turn["content"] += [{"type": "text", "text": "which of them moves"}]
    processor = video_processor_of(name)
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    frames = frames_of(name)
    batch = processor(
        text=[text],
        images=[[make_image(5, (40, 32))]],
        videos=[[clip(count, number) for number, count in enumerate(frames)]],
        video_metadata=[metadata(count) for count in frames],
        do_sample_frames=False,
        return_tensors="pt",
    )
    labels = batch["input_ids"].clone()
    labels[:, :-5] = -100
    return {**{name: value for name, value in batch.items() if isinstance(value, Tensor)}, "labels": labels}


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_keep_all_is_the_plain_model(name: str, attn: str) -> None:
    model = model_of(name, attn)
    for batch in (batch_of(name), mixed_batch(name)):
        with torch.no_grad():
            plain = model(**batch)
            with attach(model, KeepAll()) as attached:
                kept = model(**batch)
        assert attached.last is not None and attached.last.visual_after == attached.last.visual_before
        assert first_difference(kept.logits, plain.logits, batch["attention_mask"].bool()) < ROUNDING
        torch.testing.assert_close(kept.loss, plain.loss, rtol=1e-5, atol=1e-5)
    prompt = {name: value for name, value in batch_of(name, "left").items() if name != "labels"}
    expected = new_tokens(model, prompt)
    with attach(model, KeepAll()):
        assert torch.equal(new_tokens(model, prompt), expected)


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_keep_all_changes_no_gradient(name: str) -> None:
    model, batch = FAMILIES[name].model(), mixed_batch(name)
    plain = gradients(model, batch)
    with attach(model, KeepAll(), output="compact"):
        kept = gradients(model, batch)
    assert plain.keys() == kept.keys()
    for parameter in plain:
        torch.testing.assert_close(kept[parameter], plain[parameter], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "reducer", [DART(keep=9), DART(keep=5, per="image"), UniformGrid(keep=9, per="image")], ids=str
)
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_videos_and_images_of_one_row_are_reduced(name: str, reducer: Reducer) -> None:
    """Each of them has a budget of its own where a budget is per image."""
    model, batch = model_of(name), mixed_batch(name)
    with torch.no_grad(), attach(model, reducer) as attached:
        logits = model(**batch).logits
    kept = attached.last
    assert kept is not None and kept.visual_after == (3 * reducer.keep if reducer.per == "image" else 9,)
    with torch.no_grad():
        truth = masked_logits(model, {k: v for k, v in batch.items() if k != "labels"}, [(2, kept.mask)])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_batch_is_its_rows_one_by_one(name: str) -> None:
    """Choices, and the logits of what is kept."""
    model, batch = model_of(name), batch_of(name)
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        logits, together = model(**batch).logits, attached.last
        for row, frames in enumerate(frames_of(name)):
            alone = rows_alone(name, batch, row, frames)
            own, kept = model(**alone).logits, attached.last
            assert together is not None and kept is not None
            real = batch["attention_mask"][row].bool()
            assert torch.equal(together.mask[row][real], kept.mask[0])
            assert first_difference(logits[row, real][None], own, kept.mask) < ROUNDING


def rows_alone(name: str, batch: dict[str, Tensor], row: int, frames: int) -> dict[str, Tensor]:
    """Row `row` without its padding, with its own video."""
    real = batch["attention_mask"][row].bool()
    alone = {
        key: value[row][real][None] if value.shape == batch["input_ids"].shape else value
        for key, value in batch.items()
    }
    if name == "llava_onevision":
        return {**alone, "pixel_values_videos": batch["pixel_values_videos"][row : row + 1]}
    sizes = batch["video_grid_thw"].prod(1).tolist()
    pixels = batch["pixel_values_videos"].split(sizes)[row]
    return {**alone, "pixel_values_videos": pixels, "video_grid_thw": batch["video_grid_thw"][row : row + 1]}


@pytest.mark.parametrize("stages", PACKED)
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_packed_rows_are_the_padded_batch(name: str, stages: str) -> None:
    model, padded = model_of(name), batch_of(name)
    packed, real = without_padding(padded), padded["attention_mask"].bool()
    assert not bool(real.all())
    with torch.no_grad(), attach(model, PACKED[stages], output="compact") as attached:
        expected, before = model(**padded), attached.last
        found, after = model(**packed), attached.last
    assert before is not None and after is not None and after.visual_after == before.visual_after
    assert torch.equal(after.mask[0], before.mask[real]) and after.length == int(before.mask.sum())
    torch.testing.assert_close(found.loss, expected.loss, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_packed_rows_have_the_gradients_of_the_padded_batch(name: str) -> None:
    model, padded = FAMILIES[name].model().train(), batch_of(name)
    with attach(model, DART(keep=8), output="compact"):
        expected, found = gradients(model, padded), gradients(model, without_padding(padded))
    assert found.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_packed_rows_without_a_reduction(name: str) -> None:
    model, padded = model_of(name), batch_of(name)
    with torch.no_grad():
        expected = model(**padded).loss
        with attach(model, KeepAll()):
            torch.testing.assert_close(model(**without_padding(padded)).loss, expected, rtol=2e-5, atol=2e-5)


def test_a_second_video_in_the_batch_is_not_seen_by_the_first() -> None:
    """Other pixels in the video of one packed row change nothing in the other."""
    for name in FAMILIES_WITH_VIDEO:
        model, packed = model_of(name), without_padding(batch_of(name))
        changed = {**packed, "pixel_values_videos": packed["pixel_values_videos"].clone()}
        pixels = changed["pixel_values_videos"]
        last = pixels[1:] if name == "llava_onevision" else pixels[int(packed["video_grid_thw"][0].prod()) :]
        last.neg_()
        first = packed["row_lengths"][0]
        with torch.no_grad(), attach(model, DART(keep=8)):
            before, after = model(**packed).logits[0], model(**changed).logits[0]
        assert torch.equal(before[:first], after[:first]) and not torch.equal(before[first:], after[first:])


def test_grids_of_videos_side_by_side_with_an_image() -> None:
    """LLaVA-OneVision: frames of 2 x 2 pooled tokens and one line break a video, images between them as before."""
    name = "llava_onevision"
    model, batch = model_of(name), mixed_batch(name)
    parts = find_parts(model)
    rows = BatchLayout.of(batch["input_ids"], parts.visual_ids).rows()
    tiles = parts.family.tiles(model.config, batch, rows)
    assert tiles[:2] == [[(2, 2)] * 4 + [(1, 1)]] * 2 and tiles[2][0] == (4, 4) and len(tiles) == 3
