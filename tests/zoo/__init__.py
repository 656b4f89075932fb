"""Ten tiny vision-language models: real configurations, model classes and processors, random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from transformers import PreTrainedModel, ProcessorMixin

from tests.zoo.batches import conversation, encode, make_batch, make_image, sentence
from tests.zoo.folders import save_folder, save_video_folder
from tests.zoo.models import CONFIGS, build
from tests.zoo.processors import processor_of
from tests.zoo.video import FAMILIES_WITH_VIDEO, QWEN_WITH_VIDEO, make_video_batch


@dataclass(frozen=True)
class TinyFamily:
    name: str
    build: Callable[..., PreTrainedModel]
    processor: Callable[[], ProcessorMixin]

    def model(self, attn: str = "sdpa") -> PreTrainedModel:
        """A fresh model in eval mode; the same weights every time."""
        return self.build(attn=attn)


_HYBRID = ("qwen3_5",)  # layers with a recurrent state: for them the masked forward is no reference
HYBRIDS: dict[str, TinyFamily] = {
    name: TinyFamily(name, partial(build, name), partial(processor_of, name)) for name in _HYBRID
}
FAMILIES: dict[str, TinyFamily] = {
    name: TinyFamily(name, partial(build, name), partial(processor_of, name)) for name in CONFIGS if name not in HYBRIDS
}

__all__ = [
    "FAMILIES",
    "FAMILIES_WITH_VIDEO",
    "HYBRIDS",
    "QWEN_WITH_VIDEO",
    "TinyFamily",
    "conversation",
    "encode",
    "make_batch",
    "make_image",
    "make_video_batch",
    "save_folder",
    "save_video_folder",
    "sentence",
]
