"""Questions to a loaded model: through its own chat template, padded on the left, answered greedily or as told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..attach.anatomy import dissect
from ..checkpoint import Loaded

Conversation = list[dict[str, Any]]


def question(text: str, images: Sequence[Any] = ()) -> dict[str, Any]:
    """The user's turn: pictures, then the words."""
    pictures = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    """The assistant's turn."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def can_chat(processor: Any) -> str | None:
    """Why questions cannot be put to a model with this processor, or None."""
    if getattr(processor, "chat_template", None) is None:
        return "the processor has no chat template: set processor.chat_template and save it again"
    if processor.tokenizer.pad_token is None:
        return "the tokenizer has no pad token: set tokenizer.pad_token, to its eos_token for example"
    return None


def inputs_of(loaded: Loaded, conversations: Sequence[Conversation]) -> Any:
    """A batch for `generate`, each row up to where the assistant speaks."""
    encoded = loaded.processor.apply_chat_template(
        list(conversations),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    return encoded.to(loaded.model.device, dtype=loaded.model.dtype)


@torch.inference_mode()
def answers(loaded: Loaded, conversations: Sequence[Conversation], **how: Any) -> list[str]:
    """how: of `generate`, such as max_new_tokens or a streamer; greedy unless do_sample is given."""
    inputs = inputs_of(loaded, conversations)
    produced = loaded.model.generate(**inputs, **{"do_sample": False, **how})
    new = produced[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def visual_tokens(loaded: Loaded, inputs: Any) -> tuple[int, int]:
    """(before, after) the reduction, of all rows of the batch that was answered last."""
    ids = inputs["input_ids"]
    before = int(sum((ids == token).sum() for token in dissect(loaded.model).visual_ids))
    last = None if loaded.attached is None else loaded.attached.last
    return before, before if last is None or not before else sum(last.visual_after)
