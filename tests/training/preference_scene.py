"""Rows of pairs and of prompts for a tiny model, recipes that train on them, and a reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.zoo import make_image, save_folder, sentence

# Shipped recipes of DPO and GRPO, and the family of their stand-in.
PREFERENCE = {
    "llava_dpo": "llava",
    "llava_grpo": "llava",
    "qwen2_5_vl_dpo": "qwen2_5_vl",
    "qwen2_5_vl_grpo": "qwen2_5_vl",
}
RECIPE = """
model: {{path: {model}}}
reduction: {{method: dart, keep: 0.25, layer: 2, schedule: {{kind: fixed}}}}
data:
  train: [{{path: {rows}, images: {images}}}]
  workers: 0
  max_length: 2048
parts: {{projector: {{mode: frozen}}, lora: {{rank: 4, dropout: 0.0}}}}
train:
  method: {method}
  output_dir: {run}
  max_steps: 4
  per_device_batch_size: 4
  precision: fp32
  gradient_checkpointing: false
  logging_steps: 1
  save_steps: 2
  learning_rate: 1e-2
  warmup_ratio: 0.0
  zero_stage: 0
"""
GRPO = """
preference:
  rewards: tests.training.preference_scene:reward_by_position
  num_generations: 2
  max_completion_length: 4
"""


def reward_by_position(completions: list[Any], **_: Any) -> list[float]:
    """Different in a group, else there is no gradient."""
    return [float(i % 3) for i, _ in enumerate(completions)]


def make_pairs(folder: Path, number: int = 12) -> Path:
    """In the format of LLaMA-Factory; also read for rollouts, which ignore the answers."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(number):
        make_image(i).save(images / f"{i}.png")
        question = {"from": "human", "value": "<image>\n" + sentence(3 + i % 4, i)}
        chosen, rejected = sentence(1 + i % 3, 900 + i), sentence(2 + i % 2, 400 + i)
        answers = {"chosen": {"from": "gpt", "value": chosen}, "rejected": {"from": "gpt", "value": rejected}}
        rows.append({"conversations": [question], "images": [f"{i}.png"], "solution": str(i), **answers})
    file = folder / "pairs.json"
    file.write_text(json.dumps(rows))
    return file


def make_preference_recipe(folder: Path, method: str, family: str = "llava") -> Path:
    model = folder / family
    if not model.exists():
        save_folder(family, model)
    rows, file = make_pairs(folder), folder / f"{family}_{method}.yaml"
    text = RECIPE.format(model=model, rows=rows, images=folder / "images", method=method, run=folder / method)
    file.write_text(text + (GRPO if method == "grpo" else ""))
    return file
