"""A page that shows what several methods keep of the user's own images: one forward for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image

from ..hooks import attach
from ..models.prompts import build_inputs, to_device, user_message
from ..models.token_places import ImageOrFrames, locate_tokens
from ..reduction import Reducer, TowerDART
from .draw import legend, side_by_side
from .overlay import Choice, choice_of_row, full_choice, overlay_panel
from .tower import choose_in_tower, title_of


def show(
    model: Any,
    processor: Any,
    images: Sequence[ImageOrFrames],
    question: str,
    reducers: Sequence[Reducer],
    width: int = 336,
    tower: TowerDART | None = None,
    answer: bool = False,
) -> Image.Image:
    """The images with all tokens, and what each reducer keeps of them under this question.

    images: in the order of the prompt; with a processor that takes videos, also sequences of frames.
    tower: a stage in the vision tower before all reducers; one more panel shows what the tower does not see.
    answer: each panel has the beginning of the model's answer.
    The model must have no reduction attached; it is not changed.
    """
    inputs = build_inputs(processor, [[user_message(question, images)]])
    places = locate_tokens(model, processor, inputs, [images])[0]
    scored, first = False, [] if tower is None else [tower]

    def panel(choice: Choice, title: str, stages: Sequence[Reducer | TowerDART]) -> Image.Image:
        answered = answer_with(model, processor, inputs, stages) if answer else None
        return overlay_panel(images, places, choice, title, width, answered)

    panels = [panel(full_choice(len(places)), "full tokens", [])]
    for stage in first:
        seen = choose_in_tower(model, inputs, stage, len(places))
        panels.append(panel(seen, title_of(stage), [stage]))
    for reducer in reducers:
        choice = choose(model, processor, inputs, [*first, reducer], len(places))
        scored |= choice.scored is not None
        panels.append(panel(choice, _title(reducer), [*first, reducer]))
    return side_by_side(panels, question, bottom=legend(scorer=scored))


@torch.no_grad()
def choose(
    model: Any,
    processor: Any,
    inputs: Mapping[str, Any],
    reducer: Reducer | Sequence[Reducer | TowerDART],
    number: int,
) -> Choice:
    """What the reducer, or the last of several stages, keeps of the `number` visual tokens in the prefill of these
    inputs."""
    training, batch = model.training, to_device(inputs, model)
    model.eval()
    try:
        with attach(model, reducer) as attached:
            model(**batch, use_cache=False)
            last = attached.last
    finally:
        model.train(training)
    if last is None:
        return full_choice(number)
    return choice_of_row(last, 0, inputs["input_ids"][0], processor.tokenizer)


@torch.no_grad()
def answer_with(
    model: Any, processor: Any, inputs: Mapping[str, Any], stages: Sequence[Reducer | TowerDART], new_tokens: int = 16
) -> str:
    """The first tokens of the model's greedy answer with these stages; without any, at full tokens."""
    training, batch = model.training, to_device(inputs, model)
    model.eval()
    try:
        with attach(model, list(stages)) if stages else nullcontext():
            made = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
    finally:
        model.train(training)
    text: str = processor.tokenizer.decode(made[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(text.split())


def _title(reducer: Reducer) -> str:
    """The method, and those of its options that differ from the defaults."""
    defaults, given = type(reducer)().to_dict(), reducer.to_dict()
    options = [f"{name}={value}" for name, value in given.items() if value != defaults.get(name) and name != "keep"]
    return " ".join([type(reducer).name or type(reducer).__name__, *options])
