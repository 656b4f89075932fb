"""Rows with videos: frames from lists, folders, animated images and video files; lengths, labels and batches."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dart_train import DART, attach, train
from dart_train.config import VideoConfig
from dart_train.data.check import check_rows
from dart_train.data.collator import Collator, dummy_inputs
from dart_train.data.encoder import Encoder
from dart_train.data.formats import normalise
from dart_train.data.images import ImageStore
from dart_train.data.issues import BadRowError
from dart_train.data.sample import ImageRef, VideoRef
from dart_train.data.sources import SourceSpec, open_sources
from dart_train.data.supervision import IGNORED
from dart_train.data.survey import survey_rows
from dart_train.data.videos import VideoStore, frame_indices, media_shape, open_media
from dart_train.hooks.dummy_image import attach_dummy_image
from dart_train.models.pil_frames import PilFrameProcessor
from dart_train.models.pil_video import PilVideoProcessor
from dart_train.models.processors import load_processor, video_problem
from tests.fixtures.run_scene import RECIPE, losses
from tests.zoo import FAMILIES, HYBRIDS, save_video_folder
from tests.zoo.more_families import MORE_FAMILIES
from tests.zoo.processors import PATCH, TILE, processor_of
from tests.zoo.video import (
    FAMILIES_WITH_VIDEO,
    QWEN_WITH_VIDEO,
    SQUARE_FRAMES,
    TINY_PATCHES,
    PatchedFrames,
    clip,
    metadata,
)


def processor(name: str) -> Any:
    """The family's, with the video processor of this package for tiny patches."""
    made = copy.copy(processor_of(name))
    kind = type(made).__name__
    stacked = name == "llava_onevision"
    made.video_processor = PilFrameProcessor(kind, SQUARE_FRAMES) if stacked else PilVideoProcessor(kind, TINY_PATCHES)
    return made


def moving(number: int) -> Image.Image:
    return Image.fromarray(np.full((24, 32, 3), 20 * number, dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """8 frames, as files, in a folder, as GIF and as WebP of 10 frames a second."""
    frames = [moving(number) for number in range(8)]
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
        frame.save(tmp_path / "frames" / f"{number:03}.png")
    more = {"save_all": True, "append_images": frames[1:], "duration": 100}
    frames[0].save(tmp_path / "clip.gif", **more)
    frames[0].save(tmp_path / "clip.webp", lossless=True, **more)
    return tmp_path


def brightness(frames: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame).mean()) / 20) for frame in frames]


NAMES = tuple(ImageRef(path=f"{n}.png") for n in range(8))
FORMS = {
    "list": VideoRef(frames=NAMES),
    "folder": VideoRef(source=ImageRef(path="frames")),
    "gif": VideoRef(source=ImageRef(path="clip.gif")),
    "webp": VideoRef(source=ImageRef(path="clip.webp")),
}


@pytest.mark.parametrize("form", FORMS)
def test_frames_are_evenly_spaced_whatever_the_form(folder: Path, form: str) -> None:
    store = VideoStore(ImageStore(folder, video=VideoConfig(frames=4)))
    found = store.open(FORMS[form])
    assert brightness(found.frames) == [0, 2, 5, 7] and found.shape == store.shape(FORMS[form])
    assert found.shape.indices == (0, 2, 5, 7) and found.shape.total == 8
    assert found.shape.fps == (10.0 if form in ("gif", "webp") else 24.0)
    assert all(frame.size == (32, 24) and frame.mode == "RGB" for frame in found.frames)


def test_frame_rate_and_pixels_limit_the_frames(folder: Path) -> None:
    slow = VideoStore(ImageStore(folder, video=VideoConfig(frames=16, fps=5.0, max_pixels=12 * 16)))
    found = slow.open(FORMS["gif"])
    assert len(found.frames) == 4 and found.frames[0].size == (16, 12)  # 0.8 seconds
    assert len(slow.open(VideoRef(frames=NAMES)).frames) == 8  # of an unknown rate
    assert len(slow.open(VideoRef(frames=NAMES, fps=20.0)).frames) == 2
    assert frame_indices(100, None, 5, None) == (0, 25, 50, 74, 99) and frame_indices(1, 2.0, 5, 1.0) == (0,)


@pytest.mark.parametrize(("code", "ref"), [
    ("missing_image", VideoRef(source=ImageRef(path="none.mp4"))),
    ("outside_folder", VideoRef(source=ImageRef(path="../x.gif"))),
    ("outside_folder", VideoRef(source=ImageRef(path=".."))),
    ("unreadable_video", VideoRef(source=ImageRef(path="empty"))),
    ("unreadable_video", VideoRef(source=ImageRef(data=b"GIF89a not really"))),
    ("url_refused", VideoRef(source=ImageRef(url="http://host/a.mp4"))),
])  # fmt: skip
def test_videos_that_cannot_be_read_are_refused(folder: Path, code: str, ref: VideoRef) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(BadRowError) as error:
        VideoStore(ImageStore(folder)).open(ref)
    assert error.value.code == code


def test_a_video_file_needs_a_decoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(BadRowError, match="PyAV, which is not installed: pip install") as error:
        VideoStore(ImageStore(folder)).shape(VideoRef(source=ImageRef(path="clip.mp4")))
    assert error.value.code == "no_decoder"


def test_a_video_file_is_decoded(folder: Path) -> None:
    av = pytest.importorskip("av")
    for name, codec in (("clip.mp4", "mpeg4"), ("clip.mkv", "ffv1")):
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height = 32, 24
            for number in range(8):
                container.mux(stream.encode(av.VideoFrame.from_image(moving(number))))
            container.mux(stream.encode())
        store = VideoStore(ImageStore(folder, video=VideoConfig(frames=4)))
        found = store.open(VideoRef(source=ImageRef(path=name)))
        assert found.shape.fps == 8.0 and found.shape.total == 8 and found.shape.size == (32, 24)
        assert brightness(found.frames) == [0, 2, 5, 7]


def row(folder: Path, *, videos: int = 1, images: int = 0, words: str = "What moves?") -> dict[str, Any]:
    marks = "<video>" * videos + "<image>" * images
    turns = [{"from": "human", "value": f"{marks}\n{words}"}, {"from": "gpt", "value": "A grey square."}]
    given = {"videos": ["clip.gif", [f"{n}.png" for n in range(5)]][:videos]} if videos else {}
    return {"conversations": turns, **given, **({"images": ["0.png"] * images} if images else {})}


def encode(name: str, folder: Path, **shape: Any) -> tuple[Encoder, Any, Any, ImageStore]:
    store = ImageStore(folder, video=VideoConfig(frames=6)).leave_limits_to(processor(name))
    encoder = Encoder(processor(name), 4000)
    sample = normalise(row(folder, **shape))
    return encoder, sample, encoder.encode(sample, [open_media(store, ref) for ref in sample.media]), store


@pytest.mark.parametrize("name", [*FAMILIES_WITH_VIDEO, *HYBRIDS])
def test_lengths_from_headers_are_those_of_the_encoded_row(folder: Path, name: str) -> None:
    encoder, sample, encoded, store = encode(name, folder, videos=2, images=1)
    length = encoder.measure(sample, tuple(media_shape(store, ref) for ref in sample.media))
    ids, config = encoded.features["input_ids"], (FAMILIES | HYBRIDS)[name].model().config
    assert length.total == encoded.length and len(length.visual) == 3
    in_videos = [int((ids == token).sum()) for token in (config.video_token_id, config.image_token_id)]
    assert in_videos == [sum(length.visual[:2]), length.visual[2]] and all(length.visual)
    if name == "llava_onevision":
        assert encoded.features["pixel_values_videos"].shape[:2] == (2, 6)  # of the 5 frames of one, one again
    else:
        assert encoded.features["video_grid_thw"][:, 0].tolist() == [3, 3]  # 6 frames; 5 and the last one again
    labels = encoded.features["labels"][0]
    answer = encoder.processor.tokenizer.decode(labels[labels != IGNORED], skip_special_tokens=True)
    assert answer.strip() == "A grey square."


@pytest.mark.parametrize("name", [*FAMILIES_WITH_VIDEO, *HYBRIDS])
def test_a_batch_of_videos_trains_as_its_rows(folder: Path, name: str) -> None:
    rows = [encode(name, folder, **shape)[2] for shape in ({"videos": 2}, {"images": 1}, {"videos": 0})]
    collate, model = Collator(processor(name)), (FAMILIES | HYBRIDS)[name].model().train()
    reducer = DART(layer=2, keep=0.5)
    with attach(model, reducer, processor=processor(name)):
        batch = collate(rows)
        total = float(model(**batch).loss.detach()) * int((batch["labels"][:, 1:] != IGNORED).sum())
        each = [(collate([one]), one) for one in rows]
        alone = sum(float(model(**b).loss.detach()) * int((b["labels"][:, 1:] != IGNORED).sum()) for b, _ in each)
    assert total == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("shape", [{"videos": 0}, {"images": 1}, {"videos": 0, "images": 1}, {}], ids=str)
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_every_batch_runs_the_tower_twice_where_rows_may_have_videos(
    folder: Path, name: str, shape: dict[str, Any]
) -> None:
    model, batch = FAMILIES[name].model().train(), Collator(processor(name))([encode(name, folder, **shape)[2]])
    calls: list[int] = []
    tower = model.model.visual if name == "qwen2_5_vl" else model.model.vision_tower
    handle = tower.register_forward_hook(lambda *_: calls.append(1))
    plain = model(**batch).loss
    calls.clear()
    with attach_dummy_image(model, dummy_inputs(processor(name)), videos=True):
        assert torch.equal(model(**batch).loss, plain)
    handle.remove()
    assert len(calls) == 2


@pytest.mark.parametrize("name", QWEN_WITH_VIDEO)
def test_patches_are_those_of_the_reference(name: str) -> None:
    """Frames whose size needs no resizing, cut as `PatchedFrames` cuts them."""
    video, frames = processor(name).video_processor, clip(4, 1)
    video.image_mean = video.image_std = [0.5] * 3
    made = video([frames], [metadata(4)], return_tensors="pt")
    expected = PatchedFrames({})([[frames]])
    assert torch.equal(made["video_grid_thw"], expected["video_grid_thw"])
    torch.testing.assert_close(made["pixel_values_videos"], expected["pixel_values_videos"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("llava", "LlavaProcessor takes none here: its models read images alone"),
        ("internvl", "InternVLProcessor takes none here: each frame is an image of its own in the prompt"),
        ("smolvlm", "SmolVLMProcessor takes none here: each frame is an image of its own"),
        ("glm4v", "Glm4vProcessor takes none here: its model class takes a batch with images or one with videos"),
    ],
)
def test_other_models_refuse_videos_and_say_why(folder: Path, name: str, reason: str) -> None:
    sample = normalise(row(folder))
    with pytest.raises(BadRowError, match=reason) as error:
        Encoder((FAMILIES | MORE_FAMILIES)[name].processor()).encode(sample, [])
    assert error.value.code == "unsupported_media" and "Qwen3-VL, LLaVA-OneVision" in str(error.value)


def test_a_model_of_no_known_family_refuses_videos() -> None:
    class LlavaNextVideoProcessor:
        video_processor = object()

    problem = video_problem(LlavaNextVideoProcessor())
    assert problem is not None and "how it lays out a video is not known to this package" in problem


def test_frames_are_as_many_where_the_model_takes_one_tensor(folder: Path) -> None:
    """LLaVA-OneVision: of a short video some frames again, in order; a rate, by which videos would differ, is
    refused."""
    few = ImageStore(folder, video=VideoConfig(frames=12))
    store = few.leave_limits_to(processor("llava_onevision"))
    for form in FORMS.values():
        found = VideoStore(store).open(form)
        assert found.shape.indices == (0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7)
        assert brightness(found.frames) == list(found.shape.indices)
    assert len(VideoStore(few.leave_limits_to(processor("qwen2_vl"))).open(FORMS["gif"]).frames) == 8
    by_rate = ImageStore(folder, video=VideoConfig(frames=12, fps=1.0))
    with pytest.raises(ValueError, match=r"data.video.fps: 1 was given, but LlavaOnevisionProcessor takes the videos"):
        by_rate.leave_limits_to(processor("llava_onevision"))
    by_rate.leave_limits_to(processor("qwen2_vl"))


def test_videos_of_different_length_are_refused_by_the_frame_processor() -> None:
    with pytest.raises(ValueError, match="videos of 2, 4 frames were given together"):
        processor("llava_onevision").video_processor([clip(2, 0), clip(4, 1)])


def test_pixels_are_those_of_the_image_processor() -> None:
    """At the frames' own size nothing is resized: both only normalise."""
    frames = [frame.resize((TILE, TILE)) for frame in clip(2, 0)]
    made = processor("llava_onevision").video_processor([frames], return_tensors="pt")["pixel_values_videos"]
    images = processor_of("llava_onevision").image_processor
    one = images(frames[0], image_grid_pinpoints=[[TILE, TILE]], return_tensors="pt")["pixel_values"][0, 0]
    assert made.shape == (1, 2, 3, TILE, TILE)
    torch.testing.assert_close(made[0, 0], one, rtol=0, atol=1e-5)


def test_check_and_survey_measure_videos(folder: Path) -> None:
    file = folder / "rows.jsonl"
    broken = {**row(folder, words="Broken?"), "videos": ["none.gif"]}
    file.write_text("\n".join(json.dumps(each) for each in (row(folder), row(folder, videos=2, images=1), broken)))
    sources = open_sources([SourceSpec(str(file), str(folder))])
    encoder = Encoder(processor("qwen3_vl"))
    summary = check_rows(sources, encoder, progress=False)
    assert {code: item["count"] for code, item in summary["findings"].items()} == {"missing_image": 1}
    assert summary["tokens"]["visual"]["max"] > summary["tokens"]["visual"]["min"] > 0
    survey = survey_rows(sources, encoder, [DART(layer=2, keep=4)], workers=1)
    assert (survey.lengths > 0).tolist() == [True, True, False] and sources[0].may_have_videos()


def test_a_loaded_processor_takes_videos_and_saves_the_original_settings(tmp_path: Path) -> None:
    folder = save_video_folder("qwen3_vl", tmp_path / "model")
    loaded: Any = load_processor(str(folder))
    if type(loaded.video_processor) is not PilVideoProcessor:
        pytest.skip("torchvision is installed")
    assert loaded.video_processor.patch_size == PATCH
    loaded.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "processor_config.json").read_text())["video_processor"]
    assert {name: saved[name] for name in TINY_PATCHES} == TINY_PATCHES
    assert saved["video_processor_type"] == "Qwen3VLVideoProcessor"


def video_recipe(folder: Path, name: str) -> Path:
    """Rows with videos, with images and without either."""
    model = save_video_folder(name, folder / "model")
    shapes: list[dict[str, Any]] = [
        {"videos": 1},
        {"videos": 0, "images": 1},
        {"videos": 2, "images": 1},
        {"videos": 0},
    ]
    rows = [row(folder, words=f"What moves, {n}?", **shape) for n, shape in enumerate(shapes * 2)]
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=folder / "rows.json", images=folder, run=folder / "run"))
    return recipe


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_a_run_trains_on_videos_padded_and_packed(folder: Path, name: str) -> None:
    """The same losses; the settings of frames are saved with the processor."""
    recipe = video_recipe(folder, name)
    few = ["data.video.frames=6", "data.video.max_pixels=600", "train.max_steps=2", "train.per_device_batch_size=4"]
    few += ["train.learning_rate=1e-5"]
    train(recipe, [*few, "data.group_by_length=true"])
    train(recipe, [*few, "data.group_by_length=true", "train.padding_free=true", f"train.output_dir={folder}/packed"])
    lines, packed = losses(folder / "run"), losses(folder / "packed")
    assert len(lines) == 2 and all(line["visual_before"] > line["visual_after"] > 0 for line in lines)
    for key in ("loss", "visual_before", "visual_after"):
        assert [line[key] for line in packed] == pytest.approx([line[key] for line in lines], rel=1e-4), key
    saved = json.loads((folder / "run/checkpoint-2/processor_config.json").read_text())["video_processor"]
    assert saved["size"] == ({"height": TILE, "width": TILE} if name == "llava_onevision" else TINY_PATCHES["size"])


def test_a_run_that_cannot_have_equal_frames_is_refused(folder: Path) -> None:
    recipe = video_recipe(folder, "llava_onevision")
    with pytest.raises(ValueError, match=r"data\.video\.fps: 2 was given"):
        train(recipe, ["data.video.fps=2.0"])
    assert not (folder / "run").exists()
