"""launch/bench_vllm.py: the models that it serves and what it counts, without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from dart_train import load_processor
from dart_train.models.prompts import build_inputs, user_message
from dart_train.reduction.reducer_file import read_reducers
from dart_train.reduction.servable import why_not_servable
from launch import bench_vllm


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_model_and_its_visual_tokens(family: str, tmp_path: Path) -> None:
    about = bench_vllm.make_model(family, tmp_path, layers=1)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert about["parameters"] == sum(weight.numel() for weight in model.parameters())
    image = Image.new("RGB", (2 * bench_vllm.SIDE, 2 * bench_vllm.SIDE))
    inputs = build_inputs(load_processor(str(tmp_path)), [[user_message("what is written ?", [image])]])
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == about["tokens"]
    reducers = read_reducers(tmp_path)
    assert reducers is not None and why_not_servable(reducers) == []


def test_counted_operations_grow_with_the_tokens() -> None:
    class Text:
        num_hidden_layers = 10

    model = type("Model", (), {"config": type("Config", (), {"text_config": Text})})
    small, large = (bench_vllm.count_operations(model, "llava", tokens) for tokens in (576, 1152))
    assert small["full"] > 2 * small["reduced"] and large["full"] > small["full"]


def test_quartiles() -> None:
    assert bench_vllm.quartiles([1.0]) == ""
    assert bench_vllm.quartiles(torch.arange(5).tolist()) == "[1.00, 3.00]"
