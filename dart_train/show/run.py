"""`show(model, processor, images, question, reducers)`: one forward for each method, one page for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from ..attach import attach
from ..data.chat import ChatTemplate
from ..reducers import Reducer
from .choice import Choice, chosen, everything
from .geometry import Picture, geometry
from .overlay import overlay
from .page import side_by_side


def show(
    model: Any,
    processor: Any,
    images: Sequence[Picture],
    question: str,
    reducers: Sequence[Reducer],
    width: int = 336,
) -> Image.Image:
    """A page: the picture in full tokens, and what each reducer keeps of it under this question.

    images: pictures, in the order of the prompt; with a processor that takes videos, lists of frames.
    The model must have no reduction attached; it is left as it was found.
    """
    inputs = ask(processor, images, question)
    places = geometry(model, processor, inputs, [images])[0]
    panels = [overlay(images, places, everything(len(places)), "full tokens", width)]
    for reducer in reducers:
        choice = choose(model, processor, inputs, reducer, len(places))
        panels.append(overlay(images, places, choice, _title(reducer), width))
    return side_by_side(panels, question)


def ask(processor: Any, images: Sequence[Picture], question: str) -> dict[str, Any]:
    """The model's inputs for one question about some pictures, up to where it would answer."""
    content: list[dict[str, Any]] = [_part(picture) for picture in images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text = ChatTemplate(processor).render(messages, prompt=True)
    still = [picture for picture in images if isinstance(picture, Image.Image)]
    films = [list(picture) for picture in images if not isinstance(picture, Image.Image)]
    begin = processor.tokenizer.bos_token
    special = not (begin and text.startswith(begin))  # not a second beginning, where the template wrote one
    given: dict[str, Any] = {"images": [still]} if still else {}
    if films:  # every frame is shown, so every frame is looked at: the processor picks none of them
        given |= {"videos": [films], "do_sample_frames": False}
    return dict(processor(text=[text], return_tensors="pt", add_special_tokens=special, **given))


def _part(picture: Picture) -> dict[str, Any]:
    return {"type": "image" if isinstance(picture, Image.Image) else "video"}


@torch.no_grad()
def choose(model: Any, processor: Any, inputs: Mapping[str, Any], reducer: Reducer, number: int) -> Choice:
    """What the reducer keeps in the prefill of these inputs, of `number` visual tokens."""
    device, training = next(model.parameters()).device, model.training
    there = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    model.eval()
    try:
        with attach(model, reducer) as attached:
            model(**there, use_cache=False)
            last = attached.last
    finally:
        model.train(training)
    if last is None:
        return everything(number)
    return chosen(last, 0, inputs["input_ids"][0], processor.tokenizer)


def _title(reducer: Reducer) -> str:
    """The method, and its options where they are not the usual ones."""
    usual, given = type(reducer)().to_dict(), reducer.to_dict()
    more = [f"{name}={value}" for name, value in given.items() if value != usual.get(name) and name != "keep"]
    return " ".join([type(reducer).name or type(reducer).__name__, *more])
