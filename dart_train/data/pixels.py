"""Pictures in any mode, orientation and size to the RGB that a model sees."""

from __future__ import annotations

import math

from PIL import Image

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: transparency lies on white, 16 bit and float are scaled into 8 bit, not clipped."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit greys use the top 8 bits; 32-bit and float, whose scale nobody knows, the range they have."""
    values = image.convert("F")
    if image.mode.startswith("I;16"):
        return values.point(lambda v: v * (1 / 257) + 0).convert("L")
    low, high = values.getextrema()
    assert isinstance(low, float) and isinstance(high, float)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("pixels are not finite numbers")
    top = 255.0 if low >= 0 and high <= 255 else 65535.0 if low >= 0 and high <= 65535 else high
    bottom = min(low, 0.0)
    scale = 255.0 / ((top - bottom) or 1.0)
    return values.point(lambda v: v * scale + (-bottom * scale)).convert("L")


def fitted_size(size: tuple[int, int], min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    """(width, height) scaled, shape kept, so that the area lies between the two limits."""
    area = size[0] * size[1]
    if max_pixels and area > max_pixels:
        factor = math.sqrt(max_pixels / area)
        return max(1, math.floor(size[0] * factor)), max(1, math.floor(size[1] * factor))
    if min_pixels and area < min_pixels:
        factor = math.sqrt(min_pixels / area)
        return math.ceil(size[0] * factor), math.ceil(size[1] * factor)
    return size


def fit_pixels(image: Image.Image, min_pixels: int | None, max_pixels: int | None) -> Image.Image:
    size = fitted_size(image.size, min_pixels, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
