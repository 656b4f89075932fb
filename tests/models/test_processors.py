"""Processors load from a folder as their own classes, with torchvision and without it."""

from __future__ import annotations

import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import constants
from transformers import ProcessorMixin
from transformers.utils import is_torchvision_available

from dart_train.models.processors import load_processor
from tests.zoo import FAMILIES, QWEN_WITH_VIDEO, conversation, make_image, save_folder

every_family = pytest.mark.parametrize("name", FAMILIES)
without_torchvision = pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
REFUSES_PIXELS = [name for name in FAMILIES if not name.startswith("qwen")]


def _prepared(processor: ProcessorMixin) -> dict[str, torch.Tensor]:
    rows = [conversation(count, "what is it?", "blue", seed=count)[0] for count in (1, 2)]
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return dict(
        processor.apply_chat_template(rows, processor_kwargs={"padding": True, "padding_side": "right"}, **settings)
    )


def _check_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    tolerance = 0.05 if is_torchvision_available() else 0.0  # its resizing rounds differently
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=tolerance)


def _within(part: object, full: object) -> bool:
    """With torchvision the saved settings contain all defaults as well."""
    if isinstance(part, dict) and isinstance(full, dict):
        return all(key in full and _within(value, full[key]) for key, value in part.items())
    return part == full


@every_family
@pytest.mark.parametrize("older_layout", [False, True])
def test_load_returns_the_saved_processor(name: str, older_layout: bool, tmp_path: Path) -> None:
    original = FAMILIES[name].processor()
    loaded = load_processor(str(save_folder(name, tmp_path, older_layout)))
    assert type(loaded) is type(original)
    assert type(loaded) is getattr(transformers, type(original).__name__)
    _check_same(_prepared(original), _prepared(loaded))


@every_family
def test_saving_again_keeps_the_original_class_names(name: str, tmp_path: Path) -> None:
    folder, again = save_folder(name, tmp_path / "first"), tmp_path / "second"
    load_processor(str(folder)).save_pretrained(again)
    first, second = (json.loads((place / "processor_config.json").read_text()) for place in (folder, again))
    assert _within(first, second)
    assert not second["image_processor"]["image_processor_type"].endswith("Pil")
    _check_same(_prepared(load_processor(str(folder))), _prepared(load_processor(str(again))))


@every_family
def test_pickle(name: str, tmp_path: Path) -> None:
    loaded = load_processor(str(save_folder(name, tmp_path)))
    _check_same(_prepared(loaded), _prepared(pickle.loads(pickle.dumps(loaded))))


@without_torchvision
@pytest.mark.parametrize("name", ["internvl", "smolvlm"])
def test_video_is_refused_without_torchvision(name: str, tmp_path: Path) -> None:
    loaded = load_processor(str(save_folder(name, tmp_path)))
    frames = [make_image(number, (48, 48)) for number in range(4)]
    for video in (frames, "clip.mp4"):
        turn = {"role": "user", "content": [{"type": "video", "video": video}]}
        with pytest.raises(ValueError, match="install torchvision"):
            loaded.apply_chat_template([turn], tokenize=True)


@without_torchvision
@pytest.mark.parametrize("name", QWEN_WITH_VIDEO)
def test_without_torchvision_a_video_file_is_refused_and_frames_are_not(name: str, tmp_path: Path) -> None:
    loaded: Any = load_processor(str(save_folder(name, tmp_path)))
    turn = {"role": "user", "content": [{"type": "video", "video": "clip.mp4"}]}
    with pytest.raises((ImportError, ValueError), match=r"torchvision|PyAV|decod"):
        loaded.apply_chat_template([turn], tokenize=True)
    frames = [make_image(number, (448, 448)) for number in range(4)]
    assert loaded.video_processor([frames])["video_grid_thw"][0, 0] == 2


@pytest.mark.parametrize("name", QWEN_WITH_VIDEO)
def test_pixel_limits_change_the_number_of_tokens(name: str, tmp_path: Path) -> None:
    folder = str(save_folder(name, tmp_path))
    image = conversation(1, "", seed=0)[1][0]

    def patches(**limits: int) -> int:
        return load_processor(folder, **limits).image_processor([image])["image_grid_thw"][0].prod().item()

    assert image.size == (64, 64)
    assert patches() == 16 * 16
    assert patches(max_pixels=32 * 32) == 8 * 8
    assert patches(min_pixels=96 * 96, max_pixels=128 * 128) == 24 * 24


@pytest.mark.parametrize("name", QWEN_WITH_VIDEO)
def test_pixel_limits_are_saved(name: str, tmp_path: Path) -> None:
    limited = load_processor(str(save_folder(name, tmp_path)), max_pixels=2048)
    limited.save_pretrained(tmp_path)
    assert dict(load_processor(str(tmp_path)).image_processor.size)["longest_edge"] == 2048


@pytest.mark.parametrize("name", REFUSES_PIXELS)
def test_pixel_limits_without_pixel_resizing_are_refused(name: str, tmp_path: Path) -> None:
    folder = str(save_folder(name, tmp_path))
    with pytest.raises(ValueError, match="does not resize to a number of pixels"):
        load_processor(folder, max_pixels=4096)


@pytest.mark.parametrize("least, most", [(None, 0), (64, 32), (-1, None)])
def test_invalid_pixel_limits_are_refused(least: int | None, most: int | None, tmp_path: Path) -> None:
    folder = str(save_folder("qwen2_vl", tmp_path))
    with pytest.raises(ValueError, match="0 < min_pixels <= max_pixels"):
        load_processor(folder, min_pixels=least, max_pixels=most)


def test_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no processor"):
        load_processor(str(tmp_path))


def test_folder_with_only_a_tokenizer_is_refused(tmp_path: Path) -> None:
    FAMILIES["llava"].processor().tokenizer.save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(settings.read_text()).items() if key != "processor_class"}
    settings.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="has no processor"):
        load_processor(str(tmp_path))


def test_folder_with_only_a_model_reports_the_missing_part(tmp_path: Path) -> None:
    FAMILIES["llava"].model().config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a part of its LlavaProcessor is missing"):
        load_processor(str(tmp_path))


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable hub: the port of `discard`, without a listener."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("silent_hub")
@pytest.mark.parametrize("path", ["owner/not-downloaded", "no/such/folder", "/not/there"])
def test_unreachable_hub_is_reported_without_waiting(path: str) -> None:
    with pytest.raises(ValueError, match=r"not a folder, was never downloaded to .*, and .* does not answer"):
        load_processor(path)


@pytest.mark.parametrize(
    ("former", "now", "names"),
    [
        ("dart_train.processors", "dart_train.models.processors", ["NoVideo", "load_processor"]),
        ("dart_train.families", "dart_train.models.families", ["Family", "GENERIC"]),
    ],
)
def test_former_module_paths_still_work_with_a_deprecation_warning(former: str, now: str, names: list[str]) -> None:
    sys.modules.pop(former, None)
    with pytest.warns(DeprecationWarning, match=now):
        module = importlib.import_module(former)
    assert all(getattr(module, name) is getattr(importlib.import_module(now), name) for name in names)
