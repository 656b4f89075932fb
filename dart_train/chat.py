"""Questions to a loaded model: one conversation, a batch of them, and an answer printed while it is written.

session = ChatSession(dart_train.load("exported"))
print(session.ask("What is this?", [Image.open("cat.jpg")]).text)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

from .checkpoints import Loaded
from .models.prompts import Conversation, assistant_message, build_inputs, to_device, user_message
from .models.structure import find_parts


class TimedStreamer(TextStreamer):
    """Prints words as they are generated and records when each token arrived."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.start = time.perf_counter()
        self.times: list[float] = []  # seconds after the start, one for each new token

    def put(self, value: Tensor) -> None:
        """`generate` passes the prompt first, then each token once it is known on the host."""
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter() - self.start)
        super().put(value)

    def summary(self) -> str:
        if not self.times:
            return "no token was generated"
        first, rest = self.times[0], self.times[-1] - self.times[0]
        rate = f", {(len(self.times) - 1) / rest:.1f} tokens/s after it" if rest > 0 else ""
        return f"first token {first:.2f} s{rate}, {len(self.times)} tokens in {self.times[-1]:.2f} s"


@dataclass(frozen=True)
class ChatAnswer:
    """visual_tokens: in the prompt; kept_tokens: of these, the ones that the reduction kept."""

    text: str
    visual_tokens: int
    kept_tokens: int


class ChatSession:
    """One conversation; every question is answered with the turns before it."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.conversation: Conversation = []

    def ask(self, text: str, images: Sequence[Image.Image] = (), **options: Any) -> ChatAnswer:
        """options: of `generate`, such as max_new_tokens or a streamer."""
        self.conversation.append(user_message(text, images))
        inputs = chat_inputs(self.loaded, [self.conversation])
        answer = _generate(self.loaded, inputs, **options)[0]
        self.conversation.append(assistant_message(answer))
        return ChatAnswer(answer, *count_visual_tokens(self.loaded, inputs))


def generate_answers(loaded: Loaded, conversations: Sequence[Conversation], **options: Any) -> list[str]:
    """The answer to each conversation, generated as one batch. options: of `generate`, such as max_new_tokens;
    greedy unless do_sample is given."""
    return _generate(loaded, chat_inputs(loaded, conversations), **options)


def chat_inputs(loaded: Loaded, conversations: Sequence[Conversation]) -> dict[str, Any]:
    """A batch for `generate` on the model's device, each row up to where the assistant's answer begins."""
    return to_device(build_inputs(loaded.processor, conversations), loaded.model)


@torch.inference_mode()
def _generate(loaded: Loaded, inputs: Mapping[str, Any], **options: Any) -> list[str]:
    generated = loaded.model.generate(**inputs, **{"do_sample": False, **options})
    new = generated[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in loaded.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def count_visual_tokens(loaded: Loaded, inputs: Mapping[str, Any]) -> tuple[int, int]:
    """(in the prompts, kept by the reduction), summed over the rows of the batch that was answered last."""
    ids = inputs["input_ids"]
    before = int(sum((ids == token).sum() for token in find_parts(loaded.model).visual_ids))
    last = None if loaded.attached is None else loaded.attached.last
    return before, before if last is None or not before else sum(last.visual_after)
