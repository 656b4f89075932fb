"""What the lmms-eval model classes need, without importing lmms-eval: conversations from what tasks give, answers to
them, and likelihoods of given answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..chat import chat_inputs, count_visual_tokens
from ..checkpoints import Loaded
from ..models.prompts import Conversation, user_message
from ..reduction.batch_layout import IGNORED

MAX_NEW_TOKENS = 1024  # if the task sets no limit
_SAMPLING = ("temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "length_penalty")
_ONLY_SAMPLED = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class TaskAnswer:
    """tokens_in: of the prompt before the reduction, with visual tokens."""

    text: str
    tokens_in: int
    tokens_out: int


@dataclass
class VisualTokenCount:
    """Summed over all batches so far."""

    before: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a given answer. log_probability: the sum over its tokens; loss: their mean cross entropy;
    greedy: whether it is the model's own greedy answer."""

    log_probability: float
    loss: float
    greedy: bool


def from_question(processor: Any, text: str, visuals: Sequence[Any] | None) -> Conversation:
    """A task's text and images."""
    return [user_message(_without_image_token(processor, text), [_rgb_image(visual) for visual in visuals or ()])]


def from_messages(processor: Any, messages: Sequence[dict[str, Any]]) -> Conversation:
    """A task's chat messages. NotImplementedError for parts that are neither image nor text."""
    return [{**message, "content": [_part(processor, part) for part in message["content"]]} for message in messages]


def _part(processor: Any, part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": _without_image_token(processor, part["text"])}
    if part["type"] == "image":
        return {"type": "image", "image": _rgb_image(part["image"])}
    raise NotImplementedError(f"the task has a part of type {part['type']}; dart_train supports images and text")


def _without_image_token(processor: Any, text: str) -> str:
    """Some tasks write the image token into the text, but the chat template inserts it too."""
    token = getattr(processor, "image_token", None)
    return text.replace(f"{token}\n", "").replace(token, "").strip() if token else text


def _rgb_image(visual: Any) -> Image.Image:
    if isinstance(visual, str):
        visual = Image.open(visual)
    if not isinstance(visual, Image.Image):
        raise NotImplementedError(f"the task gives a {type(visual).__name__}; dart_train supports images and text")
    return visual.convert("RGB")


@torch.inference_mode()
def answer(
    loaded: Loaded, conversations: Sequence[Conversation], generation_kwargs: Mapping[str, Any], count: VisualTokenCount
) -> list[TaskAnswer]:
    """generation_kwargs: of the task. count: the batch's visual tokens are added to it."""
    inputs = chat_inputs(loaded, conversations)
    output = loaded.model.generate(**inputs, **generate_options(generation_kwargs))
    generated = output[:, inputs["input_ids"].shape[1] :]
    before, kept = count_visual_tokens(loaded, inputs)
    count.before, count.kept = count.before + before, count.kept + kept
    tokenizer = loaded.processor.tokenizer
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    stops = stop_texts(generation_kwargs)
    tokens_in = inputs["attention_mask"].sum(1).tolist()
    tokens_out = (generated != tokenizer.pad_token_id).sum(1).tolist()
    return [
        TaskAnswer(truncate_at(text, stops).strip(), *lengths)
        for text, *lengths in zip(texts, tokens_in, tokens_out, strict=True)
    ]


def generate_options(generation_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The task's generation_kwargs as arguments of `generate`; greedy unless the task samples."""
    options = {name: generation_kwargs[name] for name in _SAMPLING if generation_kwargs.get(name) is not None}
    temperature = options.get("temperature")
    wanted = bool(generation_kwargs.get("do_sample", (temperature or 0) > 0))
    do_sample = wanted and (temperature is None or temperature > 0)
    if not do_sample:
        options = {name: value for name, value in options.items() if name not in _ONLY_SAMPLED}
    max_new_tokens = int(generation_kwargs.get("max_new_tokens") or MAX_NEW_TOKENS)
    return {"do_sample": do_sample, "max_new_tokens": max_new_tokens, **options}


def stop_texts(generation_kwargs: Mapping[str, Any]) -> list[str]:
    """The task's `until`."""
    stops = generation_kwargs.get("until") or []
    return [stops] if isinstance(stops, str) else [stop for stop in stops if stop]


def truncate_at(text: str, stops: Sequence[str]) -> str:
    """Up to the first stop text. One at the very beginning is skipped: it would leave an empty answer."""
    start = len(text) - len(text.lstrip())
    ends = [position for stop in stops if (position := text.find(stop, start + 1)) >= 0]
    return text[: min(ends)] if ends else text


@torch.inference_mode()
def likelihood(loaded: Loaded, conversation: Conversation, continuation: str) -> Likelihood:
    """The likelihood of `continuation` as the answer. Its tokens are passed as labels, so that only the prompt
    influences which visual tokens are kept."""
    inputs = chat_inputs(loaded, [conversation])
    tokens = loaded.processor.tokenizer(continuation, add_special_tokens=False, return_tensors="pt")["input_ids"]
    length = tokens.shape[1]
    batch = append_tokens(inputs, tokens.to(loaded.model.device))
    labels = batch["input_ids"].clone()
    labels[:, :-length] = IGNORED
    logits = loaded.model(**batch, labels=labels).logits[:, -length - 1 : -1].float()
    targets = labels[:, -length:]
    log_probability = float(logits.log_softmax(-1).gather(-1, targets[..., None]).sum())
    return Likelihood(log_probability, -log_probability / length, bool((logits.argmax(-1) == targets).all()))


def append_tokens(inputs: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """inputs: one row. tokens [1, n] are appended to every tensor that has one entry for each token."""
    shape = inputs["input_ids"].shape
    appended = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {
        name: torch.cat([x, appended.get(name, torch.zeros_like(tokens)).to(x.dtype)], 1) if x.shape == shape else x
        for name, x in inputs.items()
    }
