"""Fewer pixels: the image made small enough that the encoder itself gives about the budget's tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .keep_all import KeepAll


@dataclass(frozen=True, kw_only=True)
class FewerPixels(KeepAll):
    """The baseline that many methods lose to (VTC-Bench). It works at the processor (`dart_train.pixels`);
    inside the language model everything that comes in is kept."""

    name: ClassVar[str] = "fewer_pixels"
