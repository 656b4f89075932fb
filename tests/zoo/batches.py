"""Images, conversations, and the batches that a family's own processor makes of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from tests.zoo.processors import processor_of

_SIZES = [(64, 64), (64, 40), (32, 64), (48, 48)]
_WORDS = (
    "what",
    "which",
    "shape",
    "colour",
    "is",
    "the",
    "left",
    "of",
    "red",
    "small",
    "circle",
    "count",
    "near",
)
Message = dict[str, Any]


def make_image(seed: int, size: tuple[int, int] | None = None) -> Image.Image:
    """Coloured shapes under some noise, so that no two patches are quite equal.

    The size (width, height) depends on the seed unless given.
    """
    chance = random.Random(seed)
    size = size or _SIZES[seed % len(_SIZES)]
    image = Image.new("RGB", size, tuple(chance.randbytes(3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.rectangle, draw.ellipse, draw.rectangle, draw.ellipse):
        left, top = chance.randrange(size[0] - 8), chance.randrange(size[1] - 8)
        corner = (left + chance.randrange(8, 24), top + chance.randrange(8, 24))
        shape((left, top, *corner), fill=tuple(chance.randbytes(3)))
    noise = Image.frombytes("RGB", size, chance.randbytes(3 * size[0] * size[1]))
    return Image.blend(image, noise, 0.25)


def sentence(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def conversation(
    n_images: int, question: str, answer: str | None = None, seed: int = 0
) -> tuple[list[Message], list[Image.Image]]:
    """One user turn (the images, then the question) and, if given, the answer; and the images."""
    images = [make_image(seed * 10 + number) for number in range(n_images)]
    content = [{"type": "image", "image": image} for image in images]
    messages: list[Message] = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages, images


def make_batch(
    name: str,
    images: Sequence[int] = (1, 2, 0),
    padding_side: str = "left",
    seed: int = 0,
    labels: bool = False,
    question_words: Sequence[int] = (3, 5, 4),
) -> dict[str, torch.Tensor]:
    """A batch for `model(**batch)`: row i has `images[i]` images and a question of its own length.

    With `labels` the rows end with an answer, supervised token by token; without, with the prompt to answer.
    """
    rows = []
    for row, count in enumerate(images):
        words = question_words[row % len(question_words)]
        answer = sentence(1 + row % 3, seed * 100 + 50 + row) if labels else None
        rows.append(conversation(count, sentence(words, seed * 100 + row), answer, seed * 100 + row)[0])
    return encode(name, rows, padding_side, labels)


def encode(
    name: str, rows: list[list[Message]], padding_side: str = "left", labels: bool = False
) -> dict[str, torch.Tensor]:
    """Conversations through the family's chat template and processor, padded to one batch.

    Tensors are made last: requested together with the mask of the assistant's text, InternVL and
    Idefics3 fail when the first row has no image.
    """
    encoded = processor_of(name).apply_chat_template(
        rows,
        tokenize=True,
        return_dict=True,
        return_tensors=None,
        add_generation_prompt=not labels,
        return_assistant_tokens_mask=labels,
        processor_kwargs={"padding": True, "padding_side": padding_side},
    )
    batch = dict(encoded.convert_to_tensors("pt"))
    if labels:
        supervised = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, -100)
    return batch
