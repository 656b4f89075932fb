"""A model of some shape on a device, the batches that it receives, and a training run on generated data."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..config import Lora, Part, Parts
from ..hooks import attach
from ..models.structure import find_parts
from ..models.transformers_compat import build_processor
from ..reduction import DART
from ..training.trainable import choose_parameters
from .model_shapes import IMAGE, SHAPES, VIDEO, Grid, ModelShape

LAYER = 2  # at which the reduction selects
PROMPT_BEFORE, PROMPT_AFTER, ANSWER = 4, 36, 24  # tokens of text before and after the image, and supervised ones
Mode = Literal["lora", "full"]
Inputs = dict[str, Tensor]
_LORA_RANK = 128  # at full size
_FIRST_WORD = 9  # ids below are special tokens


@dataclass(frozen=True)
class BenchModel:
    """host: a batch where it was made; batch: the same on the device; small_host, small: with the smaller image."""

    shape: ModelShape
    model: Any
    host: Inputs
    batch: Inputs
    small_host: Inputs
    small: Inputs
    kept: Tensor  # [B, L] bool: what DART keeps of the batch, text included

    @classmethod
    def build(
        cls,
        shape: ModelShape,
        scale: float,
        rows: int,
        device: torch.device,
        dtype: torch.dtype,
        mode: Mode | None = None,
        answer: int = 0,
        checkpointing: bool = False,
    ) -> BenchModel:
        """mode: how the language model trains (the tower frozen, the projector in full); None: nothing trains.
        answer: supervised tokens."""
        model = random_model(shape, scale, device, dtype)
        if mode is not None:
            model = choose_parameters(model, parts_of(mode, scale)).to(dtype).train()
            if checkpointing:
                find_parts(model).top.gradient_checkpointing_enable({"use_reentrant": False})
        config = find_parts(model).top.config
        host, small_host = (random_batch(config, shape, rows, answer, small) for small in (False, True))
        batch, small = (_to_device(inputs, device, dtype) for inputs in (host, small_host))
        return cls(shape, model, host, batch, small_host, small, _kept(model, shape, batch))

    @property
    def length(self) -> int:
        return int(self.host["input_ids"].shape[1])

    @property
    def reduced_length(self) -> int:
        return self.length - self.shape.tokens + self.shape.kept

    @property
    def depth(self) -> int:
        return len(find_parts(self.model).layers)

    @property
    def position_share(self) -> float:
        """Positions of all layers that remain: the layers before the reduction at full length, the others reduced.
        The share to which a KV cache and activations can shrink."""
        return (LAYER * self.length + (self.depth - LAYER) * self.reduced_length) / (self.depth * self.length)

    def inputs(self, small: bool) -> tuple[Inputs, Inputs]:
        """(on the device, on the host)."""
        return (self.small, self.small_host) if small else (self.batch, self.host)


def random_model(shape: ModelShape, scale: float, device: torch.device, dtype: torch.dtype) -> Any:
    config = shape.config(scale)
    model_class = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return model_class._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def parts_of(mode: Mode, scale: float) -> Parts:
    rank = max(4, round(_LORA_RANK * scale))
    lora = Lora(rank=rank, alpha=2.0 * rank, dropout=0.0)
    return Parts(vision=Part(mode="frozen"), projector=Part(mode="full"), language=Part(mode=mode), lora=lora)


@torch.no_grad()
def _kept(model: Any, shape: ModelShape, batch: Inputs) -> Tensor:
    logits = {} if "labels" in batch else {"logits_to_keep": 1}
    with attach(model, DART(keep=shape.kept, layer=LAYER), output="compact") as attached:
        model(**batch, **logits, use_cache=False)
    assert attached.last is not None
    return attached.last.mask


def _to_device(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    return {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}


def random_batch(config: Any, shape: ModelShape, rows: int, answer: int, small: bool = False) -> Inputs:
    """On the host: rows of text, one image or video, text. answer: supervised tokens; 0: a prompt without labels."""
    generator = torch.Generator().manual_seed(0)
    grid = shape.small_grid if small else shape.grid
    image_inputs = _image_inputs(config, shape, grid, rows, generator)
    tokens = visual_tokens(shape, grid)
    length = PROMPT_BEFORE + tokens + PROMPT_AFTER + answer
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(_FIRST_WORD, vocabulary, (rows, length), generator=generator)
    ids[:, PROMPT_BEFORE : PROMPT_BEFORE + tokens] = shape.visual_id
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **image_inputs}
    if shape.key.startswith("qwen"):
        batch["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
    if answer:
        batch["labels"] = torch.full_like(ids, -100)
        batch["labels"][:, -answer:] = ids[:, -answer:]
    return batch


def visual_tokens(shape: ModelShape, grid: Grid) -> int:
    """The number of visual tokens of an image, or of a video, with this grid of patches."""
    patches = grid[0] * grid[1]
    if shape.frames:  # two frames together
        return shape.frames // 2 * patches // 4
    if shape.key == "llava_next":  # four tiles, a newline token for each of their rows, and the complete image
        return 5 * patches + 2 * grid[0]
    return patches // 4 if shape.key.startswith("qwen") else patches


def _image_inputs(config: Any, shape: ModelShape, grid: Grid, rows: int, generator: torch.Generator) -> Inputs:
    """Random pixels, as the processor of the family lays them out."""
    vision = config.vision_config
    height, width = vision.patch_size * grid[0], vision.patch_size * grid[1]
    if shape.key == "llava":
        return {"pixel_values": torch.rand(rows, 3, height, width, generator=generator)}
    if shape.key == "llava_next":
        pixels = torch.rand(rows, 5, 3, height, width, generator=generator)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[2 * height, 2 * width]] * rows)}
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    depth = shape.frames // vision.temporal_patch_size or 1
    pixels = torch.rand(rows * depth * grid[0] * grid[1], values, generator=generator)
    names = ("pixel_values_videos", "video_grid_thw") if shape.frames else ("pixel_values", "image_grid_thw")
    return dict(zip(names, (pixels, torch.tensor([[depth, *grid]] * rows)), strict=True))


# A training run on generated data: a small LLaVA, its real processor, JPEG images of noise, words that are numbers.

IMAGE_SIZE = (640, 480)
QUESTION_WORDS, ANSWER_WORDS = 30, 20
_SPECIAL = ["<pad>", "</s>", "<s>", "<unk>", "<other>", "<image>"]
_WORDS = [f"w{number}" for number in range(500)]
_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {% generation %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %}</s>"
    "{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT: {% endif %}"
)
_RECIPE = """
model: {{path: {folder}/model}}
reduction: {{method: dart, keep: 64, layer: 2, schedule: {{kind: fixed}}}}
data:
  train: [{{path: {folder}/rows.json, images: {folder}/images}}]
train:
  output_dir: {folder}/run
  max_steps: {steps}
  per_device_batch_size: {size}
  precision: fp32
  gradient_checkpointing: false
  logging_steps: 1
  save_steps: 100000
"""


def make_run(folder: Path, scale: float, rows: int, batch_size: int, steps: int) -> Path:
    """recipe.yaml in the folder, with the model, the rows and the images that it names."""
    random_model(SHAPES["llava"], scale, torch.device("cpu"), torch.float32).save_pretrained(folder / "model")
    llava_processor().save_pretrained(folder / "model")
    (folder / "images").mkdir()
    written = [_write_row(folder / "images", i) for i in range(rows)]
    (folder / "rows.json").write_text(json.dumps(written), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(folder=folder, steps=steps, size=batch_size), encoding="utf-8")
    return recipe


def llava_processor() -> hf.LlavaProcessor:
    """The processor of LLaVA-1.5 with a word-level tokenizer."""
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, "USER:", "ASSISTANT:", *_WORDS])}
    assert vocabulary["<image>"] == IMAGE
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_specific_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    settings = {
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": _TEMPLATE,
    }
    return build_processor(hf.LlavaProcessor, [images, tokenizer], settings)


def _write_row(images: Path, number: int) -> dict[str, object]:
    """As smooth as a photograph: noise at an eighth of the size, enlarged."""
    rng = random.Random(number)
    width, height = IMAGE_SIZE[0] // 8, IMAGE_SIZE[1] // 8
    noise = Image.frombytes("RGB", (width, height), rng.randbytes(3 * width * height))
    name = f"{number}.jpg"
    noise.resize(IMAGE_SIZE, Image.Resampling.BICUBIC).save(images / name, quality=90)
    question, answer = (" ".join(rng.choices(_WORDS, k=n)) for n in (QUESTION_WORDS, ANSWER_WORDS))
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": str(number), "image": name, "conversations": turns}
