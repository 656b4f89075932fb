"""Two pictures and two questions of different length, through the user's own processor and chat template."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image, ImageDraw

QUESTIONS = ("What is this?", "Which of the shapes in the picture is the largest, and what is its colour?")
SIZES = ((448, 336), (336, 336))


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Coloured shapes under noise: no two patches are equal, so that a wrong token shows."""
    chance = random.Random(seed)
    image = Image.new("RGB", size, tuple(chance.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.rectangle, draw.ellipse) * 3:
        left, top = chance.randrange(size[0] * 3 // 4), chance.randrange(size[1] * 3 // 4)
        corner = (left + chance.randrange(size[0] // 8, size[0] // 2), top + size[1] // 4)
        shape((left, top, *corner), fill=tuple(chance.randbytes(3)))
    return Image.blend(image, Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1])), 0.25)


def ragged_batch(processor: Any, model: Any) -> dict[str, Any]:
    """A batch of two for `model(**batch)`, prompts of different length, padded on the left."""
    _check_processor(processor)
    encoded = processor.apply_chat_template(
        [_conversation(question, number) for number, question in enumerate(QUESTIONS)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return dict(encoded.to(model.device, dtype=model.dtype))


def _conversation(question: str, number: int) -> list[dict[str, Any]]:
    image = {"type": "image", "image": picture(number, SIZES[number])}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def _check_processor(processor: Any) -> None:
    tokenizer = getattr(processor, "tokenizer", None)
    problems = []
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        problems.append(f"a {type(processor).__name__} was given, expected a processor for pictures and text")
    elif tokenizer.pad_token is None:
        problems.append("the tokenizer has no pad token: set tokenizer.pad_token, to its eos_token for example")
    if getattr(processor, "chat_template", None) is None:
        problems.append("the processor has no chat template: set processor.chat_template")
    if problems:
        raise ValueError("; ".join(problems))
