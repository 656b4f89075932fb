"""The common form of every row: turns in which text and image references alternate."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a path inside the image folder, bytes, or a URL. It is opened only when it is needed."""

    path: str | None = None
    data: bytes | None = None
    url: str | None = None


@dataclass(frozen=True)
class Turn:
    role: str
    parts: tuple[str | ImageRef, ...]

    @property
    def texts(self) -> list[str]:
        return [part for part in self.parts if isinstance(part, str)]

    def with_text(self, index: int, text: str) -> Turn:
        """The same turn with part `index` replaced by `text`."""
        return replace(self, parts=(*self.parts[:index], text, *self.parts[index + 1 :]))


@dataclass(frozen=True)
class Sample:
    """A conversation. last_answer_only: earlier answers are part of the prompt, as in a prefill of the last turn."""

    id: str
    turns: tuple[Turn, ...]
    last_answer_only: bool = False

    @property
    def images(self) -> list[ImageRef]:
        """Every image reference, in the order of the conversation."""
        return [part for turn in self.turns for part in turn.parts if isinstance(part, ImageRef)]

    @property
    def answers(self) -> list[int]:
        """The turns of the assistant, by number."""
        return [number for number, turn in enumerate(self.turns) if turn.role == "assistant"]

    def up_to_answer(self, number: int) -> Sample:
        """The conversation up to answer `number`, from 0, which alone is supervised; itself where it has no answer."""
        if not self.answers:
            return self
        return replace(self, turns=self.turns[: self.answers[number] + 1], last_answer_only=True)

    def messages(self) -> list[dict[str, Any]]:
        """The input of a chat template. Images are only marked here; the processor gets them separately."""
        return [{"role": turn.role, "content": [_content(part) for part in turn.parts]} for turn in self.turns]

    def label(self, place: str) -> str:
        """The place of the row, and its own id if it has one."""
        return place if self.id == place else f"{place} (id {self.id})"

    def digest(self, root: str = "") -> int:
        """64 bits, equal for two rows with the same turns and images, whatever their ids. `root` distinguishes equal
        names in different image folders."""
        hasher = hashlib.blake2b(digest_size=8)
        for turn in self.turns:
            for part in (turn.role, *turn.parts):
                value = part.encode() if isinstance(part, str) else _image_key(part, root)
                hasher.update(b"%d:" % len(value) + value)
        return int.from_bytes(hasher.digest(), "little", signed=True)


def _content(part: str | ImageRef) -> dict[str, Any]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _image_key(ref: ImageRef, root: str) -> bytes:
    if ref.data is not None:
        return b"image:" + ref.data
    return f"image:{ref.url or root + '/' + (ref.path or '')}".encode()
