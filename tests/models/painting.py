"""What a model's visual tokens show: an image is painted on, and the tokens that change are found.

The image goes through the real processor, vision tower and projector, up to where the decoder begins. Only the
attention of the tower is disabled, so that patches do not influence each other: a token changes if, and only if, the
paint is in its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dart_train.models.families import Box, TokenPlace
from dart_train.models.structure import find_parts
from dart_train.models.token_places import locate_tokens
from tests.zoo import FAMILIES, encode, more_families
from tests.zoo.video import video_processor_of

_ATTENTION_OUTPUTS = (".out_proj", ".o_proj", ".proj", ".projection_layer", ".o_proj.linear")
MOVED = 1e-5  # a token that changes by less has not changed
_TOWERS = ("vision_tower", "visual", "vision_model")


def family_of(name: str) -> Any:
    return FAMILIES[name] if name in FAMILIES else more_families.MORE_FAMILIES[name]


@cache
def model_without_tower_attention(name: str) -> Any:
    """The family's model; the patches of its vision tower do not attend to each other."""
    model = family_of(name).model()
    tower = next(m for n, m in model.named_modules() if n.endswith(_TOWERS))
    outputs = [
        module
        for path, module in tower.named_modules()
        if ("attn" in path or "attention" in path) and path.endswith(_ATTENTION_OUTPUTS) and hasattr(module, "weight")
    ]
    assert outputs, "no attention found to disable"
    for module in outputs:
        nn.init.zeros_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    return model


def ask(name: str, rows: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
    if name not in FAMILIES:
        return more_families.encode(name, rows)
    text = {"type": "text", "text": "what is it"}
    parts = [[*({"type": "image", "image": image} for image in row), text] for row in rows]
    return encode(name, [[{"role": "user", "content": content}] for content in parts])


def video_inputs(name: str, rows: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
    """A video in each row, its frames given."""
    processor = video_processor_of(name)
    content = [[{"type": "video", "video": list(row)}, {"type": "text", "text": "what moves"}] for row in rows]
    encoded = processor.apply_chat_template(
        [[{"role": "user", "content": parts}] for parts in content],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    return dict(encoded)


def places(name: str, images: Sequence[Image.Image]) -> list[TokenPlace]:
    return locate_tokens(
        model_without_tower_attention(name), family_of(name).processor(), ask(name, [images]), [images]
    )[0]


@torch.no_grad()
def visual_tokens(name: str, batch: dict[str, Tensor]) -> Tensor:
    """[N, D]: the embeddings of the visual tokens at the input of the decoder."""
    model, found = model_without_tower_attention(name), list[Tensor]()
    parts = find_parts(model)

    def catch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["inputs_embeds"])

    handle = parts.text.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**batch)
    finally:
        handle.remove()
    return found[0][torch.isin(batch["input_ids"], torch.tensor(parts.visual_ids))]


def painted(image: Image.Image, box: Box) -> Image.Image:
    """Other colours in the box, in full pixels."""
    copy = image.copy()
    corner = (round(box.left), round(box.top), round(box.right) - 1, round(box.bottom) - 1)
    part = image.crop((corner[0], corner[1], corner[2] + 1, corner[3] + 1))
    copy.paste(part.point(lambda value: (value + 128) % 256), corner[:2])
    return copy


def changes(name: str, images: Sequence[Image.Image], number: int, boxes: Sequence[Box]) -> Tensor:
    """[boxes, N] how much each token changes when a box of image `number` is painted."""
    rows = [
        list(images),
        *([painted(image, box) if i == number else image for i, image in enumerate(images)] for box in boxes),
    ]
    tokens = visual_tokens(name, ask(name, rows)).unflatten(0, (len(rows), -1)).float()
    return (tokens[1:] - tokens[:1]).norm(dim=2)
