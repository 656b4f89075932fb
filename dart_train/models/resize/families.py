"""The encoders of the families: what each can do with a smaller picture."""

from __future__ import annotations

import math
import sys
from typing import Any

from PIL import Image
from transformers.image_utils import SizeDict

from ...reduction.budget import Keep
from .shrink import Grid, Shrink, Size


class Patches(Grid):
    """Qwen-VL: any number of rows and columns; a cell is a token."""

    @property
    def side(self) -> int:
        return int(self.images.patch_size * self.images.merge_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        least, most = self.images.size["shortest_edge"], self.images.size["longest_edge"]
        tall, wide = beside(self.images, "smart_resize")(height, width, self.side, least, most)
        return tall // self.side, wide // self.side

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}


class Canvas(Grid):
    """InternVL: tiles of the shape nearest to the picture's, and an overview as soon as there are two."""

    @property
    def side(self) -> int:
        return int(self.images.size["height"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """A picture of exactly this many tiles is cut into just these."""
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        if counted["num_image_patches"] == [1]:
            return 1, 1
        choose, tile = beside(self.images, "get_optimal_tiled_canvas"), (self.side, self.side)
        columns, rows = choose((height, width), tile, self.images.min_patches, self.images.max_patches)
        return rows, columns

    def tokens(self, cells: int) -> int:
        return int(self.processor.image_seq_length) * (cells + (cells > 1))


class Split(Grid):
    """Idefics3, SmolVLM: tiles, and an overview as soon as there are two."""

    @property
    def side(self) -> int:
        return int(self.images.max_image_size["longest_edge"])

    def grid(self, height: int, width: int) -> tuple[int, int]:
        _, rows, columns = self.images.get_number_of_image_patches(height, width, {})
        return max(1, rows), max(1, columns)

    def tokens(self, cells: int) -> int:
        return int(self.processor.image_seq_len) * (cells + (cells > 1))

    def settings(self, keep: Keep) -> dict[str, Any]:
        return {"do_resize": False}  # to as many tiles as there may be; tiles are cut all the same


class Pinpoints(Shrink):
    """LLaVA-NeXT, LLaVA-OneVision: an overview, and one of several resolutions; the smallest is the limit."""

    def full(self, height: int, width: int) -> Size:
        counted = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        return Size(height, width, counted["num_image_tokens"][0])

    def smaller(self, height: int, width: int, tokens: int) -> Size:
        sizes = [self._filling(height, width, *point) for point in self.images.image_grid_pinpoints]
        within = [size for size in sizes if size.tokens <= tokens]
        return max(within, key=lambda s: s.tokens) if within else min(sizes, key=lambda s: s.tokens)

    def _filling(self, height: int, width: int, tall: int, wide: int) -> Size:
        """The picture, its shape kept, as large as a resolution has room for."""
        scale = min(tall / height, wide / width)
        return self.full(max(1, int(height * scale)), max(1, int(width * scale)))


class Square(Shrink):
    """LLaVA-1.5: a square of whatever side, if the encoder interpolates its position embeddings."""

    def full(self, height: int, width: int) -> Size:
        square = getattr(self.images, "crop_size", None) or self.images.size
        return self._side(square["height"] // self.processor.patch_size)

    def smaller(self, height: int, width: int, tokens: int) -> Size:
        return self._side(max(1, math.isqrt(tokens)))

    def _side(self, patches: int) -> Size:
        extra = self.processor.num_additional_image_tokens
        extra -= self.processor.vision_feature_select_strategy == "default"
        side = patches * self.processor.patch_size
        return Size(side, side, patches**2 + extra)

    def settings(self, keep: Keep) -> dict[str, Any]:
        side = self.to(keep, 1, 1).height
        square = SizeDict(height=side, width=side)
        if getattr(self.images, "crop_size", None) is None:
            return {"size": square}
        return {"size": SizeDict(shortest_edge=side), "crop_size": square}

    def resized(self, picture: Image.Image, keep: Keep) -> Image.Image:
        """Resized and cropped by the image processor itself."""
        return picture


KINDS: dict[str, type[Shrink]] = {
    "Qwen2VLProcessor": Patches,
    "Qwen2_5_VLProcessor": Patches,
    "Qwen3VLProcessor": Patches,
    "InternVLProcessor": Canvas,
    "Idefics3Processor": Split,
    "SmolVLMProcessor": Split,
    "LlavaNextProcessor": Pinpoints,
    "LlavaOnevisionProcessor": Pinpoints,
    "LlavaProcessor": Square,
}
REFUSED = {"Gemma3Processor": "its projector pools the encoder's grid of one size only"}


def shrink_of(processor: Any) -> Shrink:
    name = type(processor).__name__
    if name in REFUSED:
        raise ValueError(f"{name}: fewer pixels give no fewer tokens, {REFUSED[name]}; use another method")
    if name not in KINDS:
        raise ValueError(
            f"{name}: how its encoder takes smaller pictures is not known; expected one of {', '.join(KINDS)}"
        )
    return KINDS[name](processor)


def beside(thing: Any, function: str) -> Any:
    """A function of the module that the class of `thing` (or a class above it) is written in."""
    modules = [sys.modules[cls.__module__] for cls in type(thing).__mro__]
    return next(getattr(module, function) for module in modules if hasattr(module, function))
