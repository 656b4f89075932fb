"""A comparison on questions about videos: answers are those of the plain model and of the attached reduction, costs
count the frames, and the report names the videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image

from dart_train import DART, attach
from dart_train.config import load_recipe
from dart_train.evaluation.comparison import compare
from dart_train.evaluation.comparison_grid import prepare
from dart_train.evaluation.generate import LoadedCheckpoint
from dart_train.models.prompts import render
from tests.evaluation import scene
from tests.zoo import make_image, save_folder, save_video_folder

RECIPE = """
model: {{path: {folder}/model, dtype: float32}}
data: {{video: {{frames: 4}}}}
compare:
  methods: [dart]
  budgets: [1.0, 9]
  sets: [{{path: {folder}/questions.json, images: {folder}, name: clips}}]
  batch_size: 3
  max_new_tokens: 3
  timing_repeats: 1
  timing_batch_size: 2
  output_dir: {folder}/out
"""
FRAMES = 8


def write_scene(folder: Path, family: str) -> Path:
    """Two questions about an mp4 of 8 frames, two about a list of five, one about an image, and one about nothing."""
    folder.mkdir()
    save_video_folder(family, folder / "model")
    frames = [make_image(number, (32, 24)) for number in range(FRAMES)]
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 32, 24
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    for number, frame in enumerate(frames):
        frame.save(folder / f"{number}.png")
    given: list[dict[str, Any]] = [{"video": "clip.mp4"}] * 2
    given += [{"videos": [[f"{n}.png" for n in range(5)]]}] * 2 + [{"image": "0.png"}, {}]
    rows = []
    for number, media in enumerate(given):
        mark = {"image": "<image>\n"}.get(next(iter(media), ""), "<video>\n" if media else "")
        turns = [
            {"from": "human", "value": f"{mark}what moves {'here ' * number}"},
            {"from": "gpt", "value": "a square"},
        ]
        rows.append({**media, "id": str(number), "conversations": turns})
    (folder / "questions.json").write_text(json.dumps(rows))
    recipe = folder / "compare.yaml"
    recipe.write_text(RECIPE.format(folder=folder))
    return recipe


@torch.no_grad()
def one_by_one(recipe: Path, reducer: DART | None) -> dict[str, tuple[str, int]]:
    """id -> answer, and visual tokens in the prompt, with the processor and `generate` alone."""
    read = load_recipe(recipe)
    loaded = LoadedCheckpoint(read, read.model.path, torch.device("cpu"))
    found = {}
    for question in prepare(read, progress=False).questions:
        text = render(loaded.processor, question.messages)
        media = question.media(loaded.processor)
        clips = [each for each in media if not isinstance(each, Image.Image)]
        options: dict[str, Any] = {"images": [m for m in media if isinstance(m, Image.Image)]} if not clips else {
            "videos": [clips[0].frames], "video_metadata": [clips[0].shape.metadata()], "do_sample_frames": False
        }  # fmt: skip
        inputs = loaded.processor(text=[text], return_tensors="pt", **(options if media else {}))
        with attach(loaded.model, reducer if reducer is not None else DART(keep=1.0)):
            made = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
        answer = loaded.processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        visual = torch.tensor([loaded.model.config.video_token_id, loaded.model.config.image_token_id])
        found[question.id] = (answer.strip(), int(torch.isin(inputs["input_ids"], visual).sum()))
    return found


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_answers_costs_and_report_of_questions_about_videos(tmp_path: Path, family: str) -> None:
    recipe = write_scene(tmp_path / family, family)
    results = compare(load_recipe(recipe))
    assert results is not None
    records = scene.lines(tmp_path / family / "out")
    for method, reducer in (("full", None), ("dart", DART(keep=9))):
        expected = one_by_one(recipe, reducer)
        mine = {each["id"]: each for each in records if each["method"] == method}
        assert {name: (each["prediction"], each["visual_tokens"]) for name, each in mine.items()} == expected
        assert all(each["kept"] == min(each["visual_tokens"], 9 if reducer else 10**6) for each in mine.values())
    assert all(each["visual_tokens"] > 9 for each in records if each["id"] in "0123")
    full, reduced = results.costs
    assert full.visual_tokens > reduced.kept == 9 * full.rows and full.flops > reduced.flops > 0
    page = (tmp_path / family / "out/report.html").read_text()
    assert "6 questions (4 about videos), 2 rows, 12 answers" in page
    assert "at most 4 frames of each, evenly spaced; 2 of the 2 timed questions have a video" in page


def test_a_changed_video_or_another_number_of_frames_is_answered_again(tmp_path: Path) -> None:
    recipe = write_scene(tmp_path / "scene", "qwen2_5_vl")

    def keys(*overrides: str) -> dict[str, str]:
        return {q.id: q.key for q in prepare(load_recipe(recipe, overrides), progress=False).questions}

    before = keys()
    more = keys("data.video.frames=6")
    assert {name for name in before if more[name] != before[name]} == set("0123")
    (tmp_path / "scene/clip.mp4").write_bytes((tmp_path / "scene/clip.mp4").read_bytes() + b"\0")
    assert {name for name, key in keys().items() if key != before[name]} == set("01")


def test_what_cannot_be_asked_is_reported_together(tmp_path: Path) -> None:
    """A family without videos, a method for images alone, and a video that is missing."""
    recipe = write_scene(tmp_path / "scene", "qwen2_5_vl")
    save_folder("llava", tmp_path / "scene/llava")
    rows = json.loads((tmp_path / "scene/questions.json").read_text())
    more = [*rows, {**rows[0], "id": "lost", "video": "none.mp4"}]
    (tmp_path / "scene/questions.json").write_text(json.dumps(more))
    folders = f"{{qwen: {tmp_path}/scene/model, llava: {tmp_path}/scene/llava}}"
    wrong = [f"compare.checkpoints={folders}", "compare.methods=[dart, fewer_pixels]"]
    with pytest.raises(ValueError, match="cannot run the comparison") as error:
        prepare(load_recipe(recipe, wrong), progress=False)
    for words in (
        "none.mp4",
        "compare.checkpoints.llava: 5 of 7 questions have a video, such as 0, and LlavaProcessor takes none here",
        "compare.checkpoints.qwen: 5 of 7 questions have a video, such as 0, and fewer_pixels makes images smaller",
    ):
        assert words in str(error.value), words
