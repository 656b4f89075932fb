"""The common form of every row: turns in which text and references to images and videos alternate."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a path inside the image folder, bytes, or a URL. It is opened only when it is needed."""

    path: str | None = None
    data: bytes | None = None
    url: str | None = None


@dataclass(frozen=True)
class VideoRef:
    """Where a video is: its frames as images, or one reference to a file, an animated image or a folder of frames.
    fps: frames per second of the given frames; None: as the file has it, or not known."""

    frames: tuple[ImageRef, ...] = ()
    source: ImageRef | None = None
    fps: float | None = None


Media = ImageRef | VideoRef


@dataclass(frozen=True)
class Turn:
    """weight: of the loss of an answer, for each of its tokens. fields: further fields of the message for the chat
    template (`tool_calls`, `name`), as JSON text."""

    role: str
    parts: tuple[str | ImageRef | VideoRef, ...]
    weight: float = 1.0
    fields: str = ""

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    @property
    def media(self) -> list[Media]:
        """Images and videos, in order."""
        return [part for part in self.parts if not isinstance(part, str)]

    def with_text(self, index: int, text: str) -> Turn:
        """The same turn with part `index` replaced by `text`."""
        return replace(self, parts=(*self.parts[:index], text, *self.parts[index + 1 :]))

    def message(self) -> dict[str, Any]:
        extra = json.loads(self.fields) if self.fields else {}
        return {"role": self.role, "content": [_content(part) for part in self.parts], **extra}


@dataclass(frozen=True)
class Sample:
    """A conversation. last_answer_only: earlier answers are part of the prompt, as in a prefill of the last turn.
    tools: the functions that the assistant may call, as JSON text."""

    id: str
    turns: tuple[Turn, ...]
    last_answer_only: bool = False
    tools: str = ""

    @property
    def media(self) -> list[Media]:
        """Every image and video, in the order of the conversation."""
        return [part for turn in self.turns for part in turn.media]

    @property
    def images(self) -> list[ImageRef]:
        """Every image reference, in the order of the conversation."""
        return [part for part in self.media if isinstance(part, ImageRef)]

    @property
    def videos(self) -> list[VideoRef]:
        """Every video reference, in the order of the conversation."""
        return [part for part in self.media if isinstance(part, VideoRef)]

    @property
    def answers(self) -> list[int]:
        """The turns of the assistant, by number."""
        return [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]

    @property
    def weights(self) -> list[float]:
        """Of each answer, the weight of its tokens in the loss."""
        weights = [self.turns[number].weight for number in self.answers]
        return [0.0] * (len(weights) - 1) + weights[-1:] if self.last_answer_only else weights

    def up_to_answer(self, number: int) -> Sample:
        """The conversation up to answer `number`, from 0, which alone is supervised; itself where it has no answer."""
        if not self.answers:
            return self
        return replace(self, turns=self.turns[: self.answers[number] + 1], last_answer_only=True)

    def messages(self) -> list[dict[str, Any]]:
        """The input of a chat template. Images are only marked here; the processor gets them separately."""
        return [turn.message() for turn in self.turns]

    def label(self, place: str) -> str:
        """The place of the row, and its own id if it has one."""
        return place if self.id == place else f"{place} (id {self.id})"

    def digest(self, root: str = "") -> int:
        """64 bits, equal for two rows with the same turns and images, whatever their ids. `root` distinguishes equal
        names in different image folders."""
        hasher = hashlib.blake2b(digest_size=8)
        for turn in self.turns:
            for part in (turn.role, *turn.parts, *filter(None, (turn.fields,))):
                value = part.encode() if isinstance(part, str) else _media_key(part, root)
                hasher.update(b"%d:" % len(value) + value)
        hasher.update(self.tools.encode())
        return int.from_bytes(hasher.digest(), "little", signed=True)


def _content(part: str | Media) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, ImageRef) else "video"}


def _media_key(ref: Media, root: str) -> bytes:
    if isinstance(ref, VideoRef):
        inner = [_media_key(each, root) for each in (*ref.frames, *filter(None, (ref.source,)))]
        return b"video:%r:" % ref.fps + b";".join(inner)
    if ref.data is not None:
        return b"image:" + ref.data
    return f"image:{ref.url or root + '/' + (ref.path or '')}".encode()
