"""A training run to time, made on the spot: a small LLaVA, its real processor, noise as large as photographs, words."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..models.processors import assemble
from .shapes import IMAGE, SHAPES
from .subject import build

SIZE = (640, 480)  # pixels, saved as JPEG
QUESTION, ANSWER = 30, 20  # words
_SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", "<other>", "<image>"]
_WORDS = [f"w{number}" for number in range(500)]
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {% generation %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}</s>"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT: {% endif %}"
)
_RECIPE = """
model: {{path: {here}/model}}
reduction: {{method: dart, keep: 64, layer: 2, schedule: {{kind: fixed}}}}
data:
  train: [{{path: {here}/rows.json, images: {here}/images}}]
train:
  output_dir: {here}/run
  max_steps: {steps}
  per_device_batch_size: {size}
  precision: fp32
  gradient_checkpointing: false
  logging_steps: 1
  save_steps: 100000
"""


def make_run(folder: Path, scale: float, number: int, size: int, steps: int) -> Path:
    """recipe.yaml in the folder, with everything that it names."""
    build(SHAPES["llava"], scale, torch.device("cpu"), torch.float32).save_pretrained(folder / "model")
    processor().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    rows = [_row(folder / "images", i) for i in range(number)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(here=folder, steps=steps, size=size), encoding="utf-8")
    return recipe


def processor() -> LlavaProcessor:
    """As LLaVA-1.5 has it, over words that are numbers."""
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, "USER:", "ASSISTANT:", *_WORDS])}
    assert vocabulary["<image>"] == IMAGE
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"image_token": "<image>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_specific_special_tokens=named,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    settings = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": _TEMPLATE,
    }
    return assemble(LlavaProcessor, [pictures, tokenizer], settings)


def _row(images: Path, number: int) -> dict[str, object]:
    chance = random.Random(number)
    small = Image.frombytes("RGB", (SIZE[0] // 8, SIZE[1] // 8), chance.randbytes(3 * SIZE[0] * SIZE[1] // 64))
    name = f"{number}.jpg"
    small.resize(SIZE, Image.Resampling.BICUBIC).save(images / name, quality=90)
    question, answer = (" ".join(chance.choices(_WORDS, k=n)) for n in (QUESTION, ANSWER))
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": name, "conversations": turns}
