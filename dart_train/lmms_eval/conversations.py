"""From lmms-eval's texts and pictures to conversations of our own kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..models.prompts import Conversation, user_message


def visual_question(processor: Any, text: str, visuals: Sequence[Any] | None) -> Conversation:
    return [user_message(_without_marks(processor, text), [_picture(visual) for visual in visuals or ()])]


def plain(processor: Any, messages: Sequence[dict[str, Any]]) -> Conversation:
    """Pictures as RGB; what is neither picture nor text is refused."""
    return [{**message, "content": [_part(processor, part) for part in message["content"]]} for message in messages]


def _part(processor: Any, part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": _without_marks(processor, part["text"])}
    if part["type"] == "image":
        return {"type": "image", "image": _picture(part["image"])}
    raise NotImplementedError(f"a task brings {part['type']}; dart_train answers questions on pictures and text")


def _without_marks(processor: Any, text: str) -> str:
    """Some tasks write the place of a picture into the text; the chat template does that here."""
    mark = getattr(processor, "image_token", None)
    return text.replace(f"{mark}\n", "").replace(mark, "").strip() if mark else text


def _picture(visual: Any) -> Image.Image:
    if isinstance(visual, str):
        visual = Image.open(visual)
    if not isinstance(visual, Image.Image):
        raise NotImplementedError(f"a task brings a {type(visual).__name__}; dart_train answers questions on pictures")
    return visual.convert("RGB")
