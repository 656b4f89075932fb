"""The chat verb: a quick try of a model on a picture, and how questions are asked of it from Python."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TextStreamer

from .checkpoints import Loaded
from .models.structure import find_parts

# An answer as it is written, and how long it took.


class Timed(TextStreamer):
    """Prints words as they come; notes when the first token and the last one did."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.begun = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        """The prompt comes first, then each token when it is known on the host."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter() - self.begun)
        super().put(value)

    def told(self) -> str:
        if not self.times:
            return "no token was written"
        first, rest = self.times[0], self.times[-1] - self.times[0]
        rate = f", {(len(self.times) - 1) / rest:.1f} tokens/s after it" if rest > 0 else ""
        return f"first token {first:.2f} s{rate}, {len(self.times)} tokens in {self.times[-1]:.2f} s"


# Questions to a loaded model: through its own chat template, padded on the left, answered greedily or as told.

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
    before = int(sum((ids == token).sum() for token in find_parts(loaded.model).visual_ids))
    last = None if loaded.attached is None else loaded.attached.last
    return before, before if last is None or not before else sum(last.visual_after)
