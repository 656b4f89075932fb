"""From a checked request to one row of model inputs, by the model's own processor and chat template."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from torch import Tensor

from ..checkpoints import Loaded
from ..data.chat_template import control_tokens
from ..data.collator import Collator
from ..data.encoder import Encoded
from ..models.prompts import Conversation, build_inputs
from ..models.structure import find_parts
from .chat_request import ChatRequest
from .errors import ApiError
from .image_parts import ImageReader
from .limits import ServerSettings


@dataclass(frozen=True)
class PreparedPrompt:
    """features: tensors of one row, on the CPU. Both numbers are before the reduction."""

    features: dict[str, Tensor]
    tokens: int
    visual_tokens: int


class PromptBuilder:
    """Used by many threads; the processor by one at a time, because fast tokenizers refuse to be used by two."""

    def __init__(self, loaded: Loaded, settings: ServerSettings) -> None:
        self.processor, self.limits = loaded.processor, settings.limits
        self.reader = ImageReader(settings.image_folders, settings.limits)
        parts = find_parts(loaded.model)
        self.visual_ids = parts.visual_ids
        self.positions = getattr(parts.text_config, "max_position_embeddings", None)
        self._control_tokens = control_tokens(loaded.processor)
        self._collator = Collator(loaded.processor, side="left")
        self._lock = threading.Lock()

    def prepare(self, request: ChatRequest) -> PreparedPrompt:
        """Raises ApiError."""
        conversation = self._conversation(request)
        with self._lock:
            try:
                features = build_inputs(self.processor, [conversation])
            except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
                what = f"the model's chat template or processor refuses the messages: {error}"
                raise ApiError(400, what[:500], param="messages") from None
        ids = features["input_ids"]
        self._check_length(ids.shape[1], request.max_tokens)
        return PreparedPrompt(features, ids.shape[1], sum(int((ids == token).sum()) for token in self.visual_ids))

    def join(self, prompts: list[PreparedPrompt]) -> dict[str, Tensor]:
        """A batch for `generate`, padded on the left."""
        batch = self._collator([Encoded(prompt.features) for prompt in prompts])
        return {name: value for name, value in batch.items() if name != "labels"}

    def _conversation(self, request: ChatRequest) -> Conversation:
        """Images are opened here; their number is checked before."""
        parts = [
            (f"messages.{m}.content.{p}", part)
            for m, message in enumerate(request.messages)
            for p, part in enumerate(message["content"])
        ]
        images = sum(part["type"] == "image_url" for _, part in parts)
        if images > self.limits.images:
            raise ApiError(400, f"{images} images; this server takes at most {self.limits.images}", param="messages")
        made = [self._part(part, place) for place, part in parts]
        conversation = []
        for message in request.messages:
            size = len(message["content"])
            conversation.append({"role": message["role"], "content": made[:size]})
            made = made[size:]
        return conversation

    def _part(self, part: dict[str, Any], place: str) -> dict[str, Any]:
        if part["type"] == "image_url":
            return {"type": "image", "image": self.reader.open(part["url"], place)}
        token = next((token for token in self._control_tokens if token in part["text"]), None)
        if token is not None:
            what = f"the text contains the control token {token!r}, which would forge turns or images"
            raise ApiError(400, what, param=place, code="control_token")
        return part

    def _check_length(self, tokens: int, new: int) -> None:
        code = "context_length_exceeded"
        if tokens > self.limits.prompt_tokens:
            what = f"the prompt has {tokens} tokens with those of images; this server takes {self.limits.prompt_tokens}"
            raise ApiError(400, what, param="messages", code=code)
        if self.positions is not None and tokens + new > self.positions:
            what = f"{tokens} tokens of the prompt and {new} of the answer; the model has {self.positions} positions"
            raise ApiError(400, what, param="messages", code=code)
