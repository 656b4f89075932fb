"""Answers and likelihoods of answers, without lmms-eval: what its model classes ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..chat import chat_inputs, count_visual_tokens
from ..checkpoints import Loaded
from ..models.prompts import Conversation

MOST = 1024  # tokens of an answer where the task sets no limit
_SAMPLING = ("temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "length_penalty")


@dataclass(frozen=True)
class Answer:
    """tokens_in: of the prompt, visual ones included, before reduction."""

    text: str
    tokens_in: int
    tokens_out: int


@dataclass
class Tokens:
    """Visual tokens of all batches so far."""

    before: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Likelihood:
    log_probability: float  # of all its tokens together
    loss: float  # the mean of what they cost
    greedy: bool  # whether the model itself would have said it


@torch.inference_mode()
def answer(
    loaded: Loaded, conversations: Sequence[Conversation], wishes: Mapping[str, Any], seen: Tokens
) -> list[Answer]:
    inputs = chat_inputs(loaded, conversations)
    length = inputs["input_ids"].shape[1]
    produced = loaded.model.generate(**inputs, **generation(wishes))[:, length:]
    before, kept = count_visual_tokens(loaded, inputs)
    seen.before, seen.kept = seen.before + before, seen.kept + kept
    texts = loaded.processor.tokenizer.batch_decode(produced, skip_special_tokens=True)
    stops = until(wishes)
    pad = loaded.processor.tokenizer.pad_token_id
    sizes = inputs["attention_mask"].sum(1).tolist()
    written = (produced != pad).sum(1).tolist()
    return [
        Answer(cut(text, stops).strip(), tokens_in, tokens_out)
        for text, tokens_in, tokens_out in zip(texts, sizes, written, strict=True)
    ]


def generation(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs as `generate` takes them: greedy unless it samples."""
    how = {name: wishes[name] for name in _SAMPLING if wishes.get(name) is not None}
    sampled = bool(wishes.get("do_sample", how.get("temperature", 0) > 0)) and how.get("temperature", 1) > 0
    if not sampled:
        how = {name: value for name, value in how.items() if name not in ("temperature", "top_p", "top_k")}
    return {"do_sample": sampled, "max_new_tokens": int(wishes.get("max_new_tokens") or MOST), **how}


def until(wishes: Mapping[str, Any]) -> list[str]:
    stops = wishes.get("until") or []
    return [stops] if isinstance(stops, str) else [stop for stop in stops if stop]


def cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first of them; one that the answer begins with is no end of it."""
    start = len(text) - len(text.lstrip())
    ends = [place for stop in stops if (place := text.find(stop, start + 1)) >= 0]
    return text[: min(ends)] if ends else text


@torch.inference_mode()
def likelihood(loaded: Loaded, conversation: Conversation, continuation: str) -> Likelihood:
    """Of `continuation` as the answer. Its tokens are labels, so that the prompt alone chooses what is kept."""
    inputs = chat_inputs(loaded, [conversation])
    tokens = loaded.processor.tokenizer(continuation, add_special_tokens=False, return_tensors="pt")["input_ids"]
    batch = followed_by(inputs, tokens.to(loaded.model.device))
    labels = batch["input_ids"].clone()
    labels[:, : -tokens.shape[1]] = -100
    logits = loaded.model(**batch, labels=labels).logits[:, -tokens.shape[1] - 1 : -1].float()
    targets = labels[:, -tokens.shape[1] :]
    chosen = logits.log_softmax(-1).gather(-1, targets[..., None]).sum()
    return Likelihood(float(chosen), -float(chosen) / tokens.shape[1], bool((logits.argmax(-1) == targets).all()))


def followed_by(inputs: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """A batch of one with `tokens` [1, n] behind it, in everything that has one entry for each token."""
    shape = inputs["input_ids"].shape
    more = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {
        name: torch.cat([x, more.get(name, torch.zeros_like(tokens)).to(x.dtype)], 1) if x.shape == shape else x
        for name, x in inputs.items()
    }
