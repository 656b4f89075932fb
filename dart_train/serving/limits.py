"""The limits of a server, and what it was started with."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class ServerLimits:
    """image_bytes, image_pixels: of each image, as it is sent. images, prompt_tokens (before the reduction), max_tokens
    and request_seconds (from its arrival to its last token): of a request. batch: requests that are generated together.
    waiting: requests that are accepted while batches run; more are refused. batches, wait_seconds: where requests have
    waited for so long, they do not wait for the end of the batch that runs: up to so many take turns."""

    image_bytes: int = 20 * MIB
    image_pixels: int = 50_000_000
    images: int = 8
    prompt_tokens: int = 16_384
    max_tokens: int = 1024
    batch: int = 8
    waiting: int = 64
    request_seconds: float = 300.0
    batches: int = 4
    wait_seconds: float = 0.5

    @property
    def body_bytes(self) -> int:
        """Base64 takes four bytes for three."""
        return MIB + self.images * (4 * self.image_bytes // 3 + 1024)


@dataclass(frozen=True)
class ServerSettings:
    """name: of the model in requests. image_folders: the folders that file URLs may name. default_tokens: of an answer
    whose request names no limit."""

    name: str
    api_key: str | None = None
    image_folders: tuple[Path, ...] = ()
    default_tokens: int = 256
    limits: ServerLimits = field(default_factory=ServerLimits)
