"""A plan counts the tokens of videos, and times the vision tower on their frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dart_train.config import load_recipe
from dart_train.planning import predict
from dart_train.planning.predict import PlanInputs
from tests.data.test_videos import folder, video_recipe

__all__ = ["folder"]  # a fixture


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_rows_with_videos_are_counted_and_timed(folder: Path, family: str) -> None:
    recipe = load_recipe(video_recipe(folder, family), ["data.video.frames=6", "train.per_device_batch_size=2"])
    inputs = PlanInputs.of(recipe, 1, 0, torch.device("cpu"))
    encoded = inputs.rows.encode(range(len(inputs.rows.rows)), recipe, torch.float32, torch.device("cpu"))
    config = inputs.config
    visual = torch.tensor([config.image_token_id, config.video_token_id])
    assert inputs.rows.visual.tolist() == torch.isin(encoded["input_ids"], visual).sum(1).tolist()
    plan = predict(recipe, device="cpu", seconds=0.05, ranks=1)
    for cost in (plan.full, plan.recipe):
        assert cost.seconds is not None and cost.seconds["vision tower"] > 0 and cost.flops["vision tower"] > 0
    assert plan.recipe.flops["decoder layers"] < plan.full.flops["decoder layers"]


def test_rows_with_videos_alone(folder: Path) -> None:
    """No row has an image."""
    recipe = video_recipe(folder, "qwen2_5_vl")
    rows = json.loads((folder / "rows.json").read_text())
    (folder / "rows.json").write_text(json.dumps([row for row in rows if "images" not in row and "videos" in row]))
    plan = predict(load_recipe(recipe), device="cpu", seconds=0.05, ranks=1)
    assert plan.full.flops["vision tower"] > 0 and plan.data["visual_tokens"] > 0
