"""What the processor writes for a picture of a given size, without reading the picture."""

from __future__ import annotations

import functools
from typing import Any

from PIL import Image

Sizes = tuple[tuple[int, int], ...]
_REMEMBERED = 256  # the text of one large picture may be a quarter of a megabyte


class Expander:
    """The placeholders of pictures depend on their sizes alone, so a blank of the same size tells; every size is
    asked for once. `visual` are the ids that the model replaces by image features."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.visual = visual_token_ids(processor)
        self._marks = processor.tokenizer.convert_ids_to_tokens(sorted(self.visual))
        self.texts = functools.lru_cache(maxsize=_REMEMBERED)(self._texts)

    def __getstate__(self) -> dict[str, Any]:  # a cache does not travel to workers
        return {"processor": self.processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["processor"])  # type: ignore[misc]

    def counts(self, sizes: Sizes) -> list[int]:
        """Visual tokens of each picture of one conversation, from their (width, height)."""
        return [sum(text.count(mark) for mark in self._marks) for text in self.texts(sizes)]

    def _texts(self, sizes: Sizes) -> list[str]:
        if not sizes:
            return []
        blanks = [Image.new("RGB", size) for size in sizes]
        text = " ".join([self.processor.image_token] * len(sizes))
        output = self.processor(text=[text], images=[blanks], return_text_replacement_offsets=True)
        return [picture["replacement"] for picture in output["text_replacement_offsets"][0]]


def visual_token_ids(processor: Any) -> frozenset[int]:
    """The ids that stand for image features. A processor may count the marks round them in as well, or name the
    mark in the text instead (Gemma); what is in both lists, or else in the list, is the placeholder."""
    ids = [number for number in processor.image_token_ids if number is not None]
    alone = processor.image_token_id
    if not ids:
        raise ValueError(f"{type(processor).__name__} has no image token; a processor of a vision model is needed")
    return frozenset([alone] if alone in ids else ids)
