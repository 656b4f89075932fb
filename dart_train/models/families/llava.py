"""LLaVA-1.5: every image is one square of the encoder's size. With the encoder of Pixtral, images as in Mistral 3.

The image processor resizes and crops (what is outside the middle is in no token). For fewer pixels the encoder takes
a smaller square and interpolates its position embeddings.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from PIL import Image
from transformers.image_utils import SizeDict

from ...reduction.budget import Keep
from .family import Family, Inputs, Rows, count_tokens, register
from .geometry import Box, ImageInfo, Tile, TokenGrid, encoder_pixels, padded_square, patch_area
from .mistral3 import resized_tiles
from .qwen_vl import resized_geometry
from .resizer import ResizedImage, Resizer


def _has_pixtral(config: Any) -> bool:
    return bool(config.vision_config.model_type == "pixtral")


def llava_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    return (resized_tiles if _has_pixtral(config) else square_tiles)(config, inputs, rows)


def llava_geometry(info: ImageInfo) -> list[TokenGrid]:
    return (resized_geometry if _has_pixtral(info.config) else square_geometry)(info)


def accept_smaller_images(model: Any) -> AbstractContextManager[None]:
    return nullcontext() if _has_pixtral(model.config) else interpolate_position_embeddings(model)


def square_tiles(config: Any, inputs: Inputs, rows: Rows) -> list[list[Tile]]:
    tile = encoder_tiles(config)
    return [tile] * (count_tokens(rows) // sum(height * width for height, width in tile))


def encoder_tiles(config: Any) -> list[Tile]:
    """The class token, where it is kept, and the grid of one pass through the encoder."""
    side, patch = encoder_pixels(config)
    full = getattr(config, "vision_feature_select_strategy", "default") == "full"
    has_class = full and config.vision_config.model_type == "clip_vision_model"
    return [*([(1, 1)] if has_class else []), (side // patch, side // patch)]


def square_geometry(info: ImageInfo) -> list[TokenGrid]:
    """A class token comes first. It shows the entire image, hence no place of it."""
    area = patch_area(_encoded_area(info.image_processor, *info.size), info.config)
    return [TokenGrid.blank() if tile == (1, 1) else TokenGrid.over(area, tile, "image") for tile in info.tiles]


def _encoded_area(image_processor: Any, width: int, height: int) -> Box:
    """The part of the image that reaches the encoder after padding, resizing and cropping, whichever of them the image
    processor does; larger than the image where it was padded."""
    pads = hasattr(image_processor, "pad_to_square") and bool(getattr(image_processor, "do_pad", False))
    box = padded_square(width, height) if pads else Box(0, 0, width, height)
    if not getattr(image_processor, "do_center_crop", None):
        return box
    full_width, full_height = box.right - box.left, box.bottom - box.top
    new_width, new_height = full_width, full_height
    if image_processor.do_resize:
        new_width, new_height = _resized(image_processor.size, full_width, full_height)
    crop_width, crop_height = image_processor.crop_size["width"], image_processor.crop_size["height"]
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    x, y = full_width / new_width, full_height / new_height
    corner = box.left + left * x, box.top + top * y
    return Box(*corner, corner[0] + crop_width * x, corner[1] + crop_height * y)


def _resized(size: Any, width: float, height: float) -> tuple[float, float]:
    """The size that the image processor resizes to."""
    short = size.get("shortest_edge") if hasattr(size, "get") else size.shortest_edge
    if not short:
        return size["width"], size["height"]
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


class SquareResizer(Resizer):
    """A square of any number of patches; needs `interpolate_position_embeddings`."""

    def full(self, height: int, width: int) -> ResizedImage:
        square = getattr(self.image_processor, "crop_size", None) or self.image_processor.size
        return self._square(square["height"] // self.processor.patch_size)

    def smaller(self, height: int, width: int, tokens: int) -> ResizedImage:
        return self._square(max(1, math.isqrt(tokens)))

    def _square(self, patches: int) -> ResizedImage:
        extra = self.processor.num_additional_image_tokens
        extra -= self.processor.vision_feature_select_strategy == "default"
        side = patches * self.processor.patch_size
        return ResizedImage(side, side, patches**2 + extra)

    def settings(self, keep: Keep) -> dict[str, Any]:
        side = self.size_for(keep, 1, 1).height
        square = SizeDict(height=side, width=side)
        if getattr(self.image_processor, "crop_size", None) is None:
            return {"size": square}
        return {"size": SizeDict(shortest_edge=side), "crop_size": square}

    def resize(self, image: Image.Image, keep: Keep) -> Image.Image:
        """The image processor itself resizes and crops, with the new settings."""
        return image


_OPTION = "interpolate_pos_encoding"
_TOWERS = ("vision_tower", "vision_model")


@contextmanager
def interpolate_position_embeddings(model: Any) -> Iterator[None]:
    """Inside, the vision tower takes images of any size; at its own size nothing changes. CLIP and SigLIP have the
    option, but LLaVA's forward does not pass it on. model: the Hugging Face model, without wrappers."""
    inner = getattr(model, "model", None)
    tower = next((getattr(inner, name) for name in _TOWERS if hasattr(inner, name)), None)
    if tower is None or _OPTION not in inspect.signature(tower.forward).parameters:
        raise ValueError(
            f"{type(model).__name__}: its vision tower cannot interpolate position embeddings "
            f"(expected a `vision_tower` whose forward takes {_OPTION}); give images of its own size"
        )
    handle = tower.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, _OPTION: True}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


LLAVA = register(
    Family(
        name="LLaVA-1.5",
        model_types=("llava",),
        tiles=llava_tiles,
        reads=("image_sizes",),
        geometry=llava_geometry,
        processors=("LlavaProcessor",),
        resizer=SquareResizer,
        accept_smaller_images=accept_smaller_images,
        projectors=frozenset({"multi_modal_projector"}),
    )
)
