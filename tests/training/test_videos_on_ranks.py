"""Two ranks of which one has a video, the other an image or text alone: the same losses as one process has, with every
backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_train import train
from tests.fixtures.rank_jobs import Job, RankRuns
from tests.fixtures.run_scene import RECIPE, losses
from tests.zoo import make_image, save_video_folder

pytestmark = pytest.mark.deepspeed
SHAPES = ((1, 0), (0, 1), (1, 1), (0, 0))  # videos and images of the rows, repeated
HOW = {"2": "train.zero_stage=2", "3": "train.zero_stage=3", "fsdp2": "train.backend=fsdp2", "ddp": "train.backend=ddp"}
FEW = ["train.max_steps=4", "data.video.frames=4", "train.learning_rate=1e-4"]


def row(number: int, videos: int, images: int) -> dict[str, Any]:
    question = "<video>" * videos + "<image>" * images + f"\nWhat moves {number}?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A square."}]
    return {"conversations": turns, "videos": ["clip.gif"] * videos, "images": ["0.png"] * images}


def make_video_recipe(folder: Path) -> Path:
    frames = [make_image(number, (32, 24)) for number in range(8)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(folder / "0.png")
    model = save_video_folder("qwen2_5_vl", folder / "model")
    rows = [row(number, *SHAPES[number % 4]) for number in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=model, rows=folder / "rows.json", images=folder, run=folder / "run"))
    return recipe


def rank_jobs(recipe: Path, folder: Path) -> list[Job]:
    own = str(make_video_recipe(folder))
    shape = ["train.per_device_batch_size=1", "train.gradient_accumulation_steps=2"]
    return [
        {"recipe": own, "overrides": [*FEW, *shape, f"train.output_dir={folder / name}", how]}
        for name, how in HOW.items()
    ]


@pytest.mark.parametrize("how", HOW)
def test_ranks_with_and_without_videos_train_like_one_process(rank_runs: RankRuns, how: str) -> None:
    one, folder = rank_runs.folder / "one", rank_runs.folder
    if not one.exists():
        train(folder / "recipe.yaml", [*FEW, "train.per_device_batch_size=4", f"train.output_dir={one}"])
    for name in ("loss", "visual_before", "visual_after"):
        expected = [line[name] for line in losses(one)]
        assert [line[name] for line in losses(folder / how)] == pytest.approx(expected, rel=2e-3), name
