"""The tiny families are sound: what the laws are tested on must itself be right."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import is_torchvision_available

from dart_train.processors import load_processor
from tests.zoo import (
    FAMILIES,
    FAMILIES_WITH_VIDEO,
    conversation,
    encode,
    make_batch,
    make_video_batch,
    save_folder,
)
from tests.zoo.video import encode_videos, metadata

every_family = pytest.mark.parametrize("name", FAMILIES)
both_sides = pytest.mark.parametrize("side", ["left", "right"])


@every_family
@both_sides
def test_ragged_batch_runs_with_a_loss(name: str, side: str) -> None:
    batch = make_batch(name, (1, 2, 0), padding_side=side, labels=True)
    model = FAMILIES[name].model()
    with torch.no_grad():
        output = model(**batch)
    assert output.loss.isfinite()
    assert output.logits.shape == (*batch["input_ids"].shape, model.config.get_text_config().vocab_size)
    padded = batch["attention_mask"] == 0
    assert padded.any()
    assert padded[:, 0 if side == "left" else -1].any() and not padded[:, -1 if side == "left" else 0].any()
    assert (batch["labels"][padded] == -100).all()


@every_family
def test_every_image_feature_has_its_token(name: str) -> None:
    batch, model = make_batch(name, (1, 2, 0)), FAMILIES[name].model()
    wanted = batch.keys() & inspect.signature(model.get_image_features).parameters
    with torch.no_grad():
        features = model.get_image_features(**{key: batch[key] for key in wanted}).pooler_output
    counted = [feature.shape[:-1].numel() for feature in features]
    tokens = (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()
    assert sum(counted) == sum(tokens)
    assert min(tokens[:2]) >= 16 and tokens[2] == 0


@every_family
def test_supervised_tokens_are_the_answers(name: str) -> None:
    answers = {0: "two red circles", 2: "'so' - a\nπ 42%", 1: "no"}  # by number of pictures
    rows = [conversation(count, "what is it?", answer, seed=count)[0] for count, answer in answers.items()]
    labels = encode(name, rows, labels=True)["labels"]
    tokenizer = FAMILIES[name].processor().tokenizer
    supervised = [tokenizer.decode(row[row != -100]) for row in labels]
    assert [text.removesuffix(tokenizer.eos_token).strip() for text in supervised] == [*answers.values()]
    assert all(text.endswith(tokenizer.eos_token) for text in supervised)


@every_family
def test_all_turns_of_the_assistant_are_supervised(name: str) -> None:
    turns = conversation(1, "what?", "a ship")[0] + conversation(0, "colour?", "blue")[0]
    labels = encode(name, [turns], labels=True)["labels"][0]
    text = FAMILIES[name].processor().tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
    assert text.split() == ["a", "shipblue"] or text.split() == ["a", "ship", "blue"]


@every_family
def test_prompt_to_answer_is_where_the_answer_would_begin(name: str) -> None:
    asked, answered = (conversation(1, "what is it?", answer, seed=1)[0] for answer in (None, "blue"))
    prompt, full = encode(name, [asked])["input_ids"][0], encode(name, [answered], labels=True)
    assert torch.equal(full["input_ids"][0, : len(prompt)], prompt)
    assert full["labels"][0, len(prompt)] != -100 and (full["labels"][0, : len(prompt)] == -100).all()


@every_family
def test_text_alone_brings_no_pictures(name: str) -> None:
    batch = make_batch(name, (0, 0))
    assert not [key for key in batch if "pixel" in key or "image" in key]
    assert FAMILIES[name].model()(**batch).logits.isfinite().all()


@every_family
def test_pictures_matter(name: str) -> None:
    batch, model = make_batch(name, (1,)), FAMILIES[name].model()
    with torch.no_grad():
        seen = model(**batch).logits[:, -1]
        other = model(**{**batch, "pixel_values": -batch["pixel_values"]}).logits[:, -1]
    assert (seen - other).abs().max() > 0.1


@every_family
def test_folder_gives_back_the_model(name: str, tmp_path: Path) -> None:
    batch = make_batch(name, (1, 0))
    loaded = AutoModelForImageTextToText.from_pretrained(save_folder(name, tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, FAMILIES[name].model()(**batch).logits)


@every_family
def test_same_model_every_time_and_the_same_with_eager_attention(name: str) -> None:
    batch = make_batch(name, (1, 2, 0))
    first, again, eager = (FAMILIES[name].model(attn)(**batch).logits for attn in ("sdpa", "sdpa", "eager"))
    seen = batch["attention_mask"].bool()
    assert torch.equal(first, again)
    torch.testing.assert_close(first[seen], eager[seen], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
@both_sides
def test_videos_run_and_every_feature_has_its_token(name: str, side: str) -> None:
    batch, model = make_video_batch(name, padding_side=side), FAMILIES[name].model()
    tokens = (batch["input_ids"] == model.config.video_token_id).sum(1)
    assert torch.equal(tokens, batch["video_grid_thw"].prod(1) // 4)
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


@pytest.mark.skipif(not is_torchvision_available(), reason="the real video processors need torchvision")
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_tiny_videos_are_what_the_real_video_processor_makes(name: str, tmp_path: Path) -> None:
    real = load_processor(str(save_folder(name, tmp_path)))
    videos = {
        "do_resize": False,
        "do_sample_frames": False,
        "video_metadata": [metadata(4), metadata(6)],
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    expected, tiny = encode_videos(real, (4, 6), videos_kwargs=videos), make_video_batch(name, (4, 6))
    assert expected.keys() == tiny.keys()
    for key, value in expected.items():
        torch.testing.assert_close(tiny[key], value, rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm"])
def test_large_pictures_are_cut_into_tiles(name: str) -> None:
    model, batch = FAMILIES[name].model(), make_batch(name, (1,), seed=0)
    pixels = batch["pixel_values"]
    assert pixels.shape[:-3].numel() > 1
    assert (batch["input_ids"] == model.config.image_token_id).sum() > 16


@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_pictures_of_different_size_have_different_numbers_of_tokens(name: str) -> None:
    grids = make_batch(name, (1, 2))["image_grid_thw"]
    assert len({int(grid.prod()) for grid in grids}) > 1
