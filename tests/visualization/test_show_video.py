"""`show --frames`: the kept tokens of a video, each over its own patches of its own frames.

The patches of every token have a colour of their own. Kept patches are on the page in full colour and dropped ones in
the shade, so the tokens drawn as kept can be read from the page."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dart_train
from dart_train import DART, Random, attach
from dart_train.__main__ import main
from tests.zoo import QWEN_WITH_VIDEO, save_folder
from tests.zoo.processors import PATCH
from tests.zoo.video import FRAMES_PER_PATCH, MERGE, PatchedFrames

SIDE = PATCH * MERGE  # pixels of a token
ACROSS, DOWN, TOGETHER = 4, 3, 2  # tokens; frames that a token shows
FRAMES = 3 * TOGETHER
CELLS = list(product(range(FRAMES // TOGETHER), range(DOWN), range(ACROSS)))  # in the order of the prompt
COLOURS = {cell: (255 - 40 * (i // 9), 20 + 55 * (i % 3), 30 + 55 * (i // 3 % 3)) for i, cell in enumerate(CELLS)}
PANEL, GAP = 336, 16


def frame(number: int) -> Image.Image:
    image = Image.new("RGB", (ACROSS * SIDE, DOWN * SIDE))
    for (when, row, column), colour in COLOURS.items():
        if when == number // TOGETHER:
            image.paste(colour, (column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))
    return image


@pytest.fixture
def clip(tmp_path: Path) -> list[str]:
    files = [tmp_path / f"{number}.png" for number in range(FRAMES)]
    for number, file in enumerate(files):
        frame(number).save(file)
    return [str(file) for file in files]


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Frames are cut into patches without torchvision; the arguments of the video processor."""
    assert FRAMES_PER_PATCH == TOGETHER
    calls: list[dict[str, Any]] = []

    class Cut(PatchedFrames):
        def __init__(self, kind: str, settings: dict[str, Any]) -> None:
            super().__init__(settings)

        @classmethod
        def supports(cls, kind: str) -> bool:
            return True

        def __call__(self, videos: Any, **kwargs: Any) -> Any:
            calls.append(kwargs)
            return super().__call__(videos, **kwargs)

    monkeypatch.setattr("dart_train.models.processors.PilVideoProcessor", Cut)
    return calls


def shown(page: Image.Image, panel: int) -> set[tuple[int, int, int]]:
    """Cells in full colour on a panel."""
    left = GAP + panel * (PANEL + GAP)
    found = page.crop((left, 0, left + PANEL, page.height)).convert("RGB").getcolors(1 << 24) or []
    number = {colour: count for count, colour in found}
    return {cell for cell, colour in COLOURS.items() if number.get(colour, 0) >= 60}  # of 400 pixels: lines and rings


@torch.no_grad()
def kept(folder: Path, reducer: Any) -> set[tuple[int, int, int]]:
    """Which cells the model keeps, without any drawing."""
    loaded = dart_train.load(folder, reducer=None, device="cpu")
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what moves"}]}
    text = loaded.processor.apply_chat_template([turn], add_generation_prompt=True)
    batch = loaded.processor(text=[text], videos=[[[frame(i) for i in range(FRAMES)]]], return_tensors="pt")
    with attach(loaded.model, reducer) as attached:
        loaded.model(**batch)
        assert attached.last is not None
        mine = attached.last.kept_visual[0][attached.last.visual[0]]
    return {cell for cell, stays in zip(CELLS, mine.tolist(), strict=True) if stays}


@pytest.mark.parametrize("family", QWEN_WITH_VIDEO)
def test_kept_patches_are_drawn_in_their_own_frames(
    family: str, tmp_path: Path, clip: list[str], cutting: list[dict[str, Any]]
) -> None:
    folder, out = save_folder(family, tmp_path / family), tmp_path / "page.png"
    ask = ["show", str(folder), "--frames", *clip, "--question", "what moves", "--device", "cpu"]
    assert main([*ask, "--methods", "dart,random", "--keep", "11", "--out", str(out)]) == 0
    assert cutting[0]["do_sample_frames"] is False, "every given frame is used"
    page = Image.open(out)
    assert page.width == 3 * PANEL + 4 * GAP
    assert shown(page, 0) == set(CELLS)
    for panel, reducer in ((1, DART(keep=11, layer=2)), (2, Random(keep=11, layer=2))):
        expected = kept(folder, reducer)
        assert len(expected) == 11 and shown(page, panel) == expected
    assert shown(page, 1) != shown(page, 2)


@torch.no_grad()
def test_frames_of_onevision_are_drawn(tmp_path: Path, clip: list[str]) -> None:
    """A frame is a grid of its own; the line break at the end of the video is on none."""
    folder, out = save_folder("llava_onevision", tmp_path / "model"), tmp_path / "page.png"
    ask = ["show", str(folder), "--frames", *clip, "--question", "what moves", "--device", "cpu"]
    assert main([*ask, "--methods", "dart,uniform", "--keep", "11", "--out", str(out)]) == 0
    assert Image.open(out).width == 3 * PANEL + 4 * GAP


def test_problems_with_frames_and_model_are_reported_together(
    tmp_path: Path, clip: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dart_train.checkpoints.load", lambda *a, **k: pytest.fail("the model was read"))
    Image.new("RGB", (8, 8)).save(tmp_path / "other.png")
    folder = save_folder("llava", tmp_path / "llava")
    ask = ["show", str(folder), "--frames", *clip, str(tmp_path / "other.png"), "--question", "what moves"]
    assert main([*ask, "--methods", "dart,drat", "--layer", "9", "--out", "page.txt"]) == 2
    err = capsys.readouterr().err
    for words in (
        "images of 8x8, 32x24 were given, expected frames of one video",
        "--frames: videos of llava models cannot be shown",
        "did you mean dart",
        "--methods dart: layer=9: expected 0 to 4",
        "page.txt",
    ):
        assert words in err, words


def test_missing_processor_is_reported_with_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_folder("llava", tmp_path / "llava")
    (folder / "processor_config.json").unlink()
    assert main(["show", str(folder), "--image", str(tmp_path / "cat.png"), "--question", "what"]) == 2
    err = capsys.readouterr().err
    assert "cat.png: no such file" in err and "no processor" in err
