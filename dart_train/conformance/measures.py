"""What the laws are made of: the model under test, its batch, generation, and differences."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import GenerationConfig

from ..hooks.reference import plain_logits
from ..models.prompts import build_inputs, prompt_problems, to_device, user_message
from ..models.structure import find_parts

STEPS = 8  # generated tokens
SUPERVISED = 4  # tokens at the end of each row
QUESTIONS = ("What is this?", "Which of the shapes in the picture is the largest, and what is its colour?")
SIZES = ((448, 336), (336, 336))

Verdict = Literal["holds", "does not hold", "not checked"]


@dataclass(frozen=True)
class LawResult:
    """number: the largest relative difference; note: what was compared, or why it was not."""

    law: str
    verdict: Verdict
    number: float | None = None
    note: str = ""

    @classmethod
    def of(cls, law: str, difference: float, tolerance: float, note: str = "") -> LawResult:
        """NaN fails, too."""
        return cls(law, "holds" if difference <= tolerance else "does not hold", difference, note)


@dataclass(frozen=True)
class ModelUnderTest:
    """tolerance: half of the digits of the model's dtype. plain: its logits [B, L, V] with nothing attached."""

    model: Any
    processor: Any
    inputs: Mapping[str, Any]
    tolerance: float
    plain: Tensor
    hooks: int

    @classmethod
    def of(cls, model: Any, processor: Any) -> ModelUnderTest:
        inputs = ragged_batch(processor, model)
        tolerance = math.sqrt(torch.finfo(model.dtype).eps)
        with torch.no_grad():
            return cls(model, processor, inputs, tolerance, plain_logits(model, inputs), count_hooks(model))

    @property
    def real(self) -> Tensor:
        """[B, L] bool."""
        return self.inputs["attention_mask"].bool()

    @torch.no_grad()
    def logits(self) -> Tensor:
        """[B, L, V]."""
        return self.model(**self.inputs, use_cache=False).logits


@torch.no_grad()
def generate_greedily(model: Any, inputs: Mapping[str, Any], use_cache: bool) -> Any:
    """STEPS new tokens and their logits. Placeholders of images, videos and sounds are excluded: no forward takes
    one without what it stands for."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        suppress_tokens=placeholder_ids(model),
        pad_token_id=model.generation_config.pad_token_id,
        eos_token_id=model.generation_config.eos_token_id,
    )
    return model.generate(**inputs, generation_config=config)


def placeholder_ids(model: Any) -> list[int]:
    """Ids that stand for an image, a video or a sound, or mark its place."""
    config = find_parts(model).top.config
    kinds, ends = ("image", "video", "vision", "audio", "speech"), ("_token_id", "_token_index")
    named = {
        value
        for name, value in vars(config).items()
        if isinstance(value, int) and name.endswith(ends) and any(kind in name for kind in kinds)
    }
    return sorted({*find_parts(model).visual_ids, *named})


def step_differences(one: Any, other: Any, row: int) -> Iterator[float]:
    """Differences of the logits of one row, up to the step at which the two texts differ."""
    start = one.sequences.shape[1] - STEPS
    for step in range(STEPS):
        yield relative_difference(one.logits[step][row], other.logits[step][row])
        if one.sequences[row, start + step] != other.sequences[row, start + step]:
            return


def relative_difference(a: Tensor, b: Tensor, where: Tensor | None = None) -> float:
    """The largest difference, relative to the largest value of b; NaN where either has one."""
    if where is not None:
        a, b = a[where], b[where]
    a, b = a.float(), b.float()
    return float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def largest(differences: Iterable[float]) -> float:
    """NaN as soon as one is (Python's max would ignore it)."""
    return float(torch.tensor(list(differences)).max())


def count_hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def ragged_batch(processor: Any, model: Any) -> dict[str, Any]:
    """A batch of two for `model(**batch)`: prompts of different length, padded on the left."""
    if problems := prompt_problems(processor):
        raise ValueError("; ".join(problems))
    pairs = zip(QUESTIONS, test_images(), strict=True)
    return to_device(build_inputs(processor, [[user_message(question, [image])] for question, image in pairs]), model)


def test_images() -> list[Image.Image]:
    """One for each question."""
    return [shapes_under_noise(number, size) for number, size in enumerate(SIZES)]


def shapes_under_noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured shapes under noise: no two patches are equal, so that a wrong token shows."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.rectangle, draw.ellipse) * 3:
        left, top = rng.randrange(size[0] * 3 // 4), rng.randrange(size[1] * 3 // 4)
        corner = (left + rng.randrange(size[0] // 8, size[0] // 2), top + size[1] // 4)
        shape((left, top, *corner), fill=tuple(rng.randbytes(3)))
    return Image.blend(image, Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])), 0.25)


@contextmanager
def only_few_trained(model: nn.Module, layer: int) -> Iterator[dict[str, nn.Parameter]]:
    """The smallest weight of three layers; all other parameters are frozen for a while, so that a check fits in memory
    where the model does."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    layers = find_parts(model).layers
    few = {f"layer {i}": _smallest_weight(layers[i]) for i in sorted({0, layer, len(layers) - 1})}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        for parameter in few.values():
            parameter.requires_grad_(True)
        yield few
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def _smallest_weight(layer: nn.Module) -> nn.Parameter:
    weights = [p for name, p in layer.named_parameters() if name.endswith("weight") and p.is_floating_point()]
    return min(weights, key=lambda weight: weight.numel())


def last_tokens(real: Tensor, number: int) -> Tensor:
    """[B, L] bool: the last `number` real tokens of each row."""
    to_end = real.long().flip(1).cumsum(1).flip(1)
    return real & (to_end <= number)
