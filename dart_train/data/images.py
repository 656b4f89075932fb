"""Opening images that come from untrusted data: inside one folder, within limits, always as RGB."""

from __future__ import annotations

import io
import math
import os
import stat
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps

from ..config import Data, VideoConfig
from ..models.processors import limit_frames, limit_pixels, stacks_frames, takes_pixel_limits
from .issues import BadRowError, RowIssue
from .sample import ImageRef

# Only decoders of ordinary images: Pillow would pass an .eps to Ghostscript, and has many formats that are not fuzzed.
Image.init()
FORMATS = tuple(f for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if f in Image.OPEN)
MAX_PIXELS = 100_000_000
MAX_ASPECT = 200
MAX_URL_BYTES = 64 * 1024 * 1024
URL_TIMEOUT_SECONDS = 20
TINY = 8
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


@dataclass(frozen=True)
class ImageStore:
    """Opens image references below `root`. `max_pixels` and `min_pixels` resize; images over `limit` pixels are
    refused. `follow_links`: whether symbolic links may lead out of `root` (False, True, or the folders that they may
    lead to). `equal_frames`: as many frames of every video."""

    root: Path | None = None
    allow_urls: bool = False
    max_pixels: int | None = None
    min_pixels: int | None = None
    limit: int = MAX_PIXELS
    follow_links: bool | tuple[str, ...] = False
    video: VideoConfig = field(default_factory=VideoConfig)
    equal_frames: bool = False

    @classmethod
    def from_config(cls, data: Data) -> ImageStore:
        """With the settings of a recipe's `data` section; the folder comes with each source."""
        return cls(
            None, data.allow_urls, data.max_pixels, data.min_pixels, follow_links=data.follow_links, video=data.video
        )

    def leave_limits_to(self, processor: Any) -> ImageStore:
        """Where the image processor itself resizes to a number of pixels (Qwen-VL), the limits are set on it, so that
        checkpoints and exports carry them, and the store no longer resizes. Other processors, and the store for them,
        stay as they are. Likewise the limit of the frames of videos, and whether all have as many."""
        if self.video.max_pixels is not None:
            limit_frames(processor, self.video.max_pixels)
        return replace(self._leave_pixels_to(processor), equal_frames=self._takes_equal_frames(processor))

    def _takes_equal_frames(self, processor: Any) -> bool:
        if not stacks_frames(processor):
            return False
        if self.video.fps is not None:
            raise ValueError(
                f"data.video.fps: {self.video.fps:g} was given, but {type(processor).__name__} takes the videos of a "
                "batch as one tensor, of as many frames each; leave it out, and give data.video.frames"
            )
        return True

    def _leave_pixels_to(self, processor: Any) -> ImageStore:
        if (self.min_pixels, self.max_pixels) == (None, None) or not takes_pixel_limits(processor):
            return self
        size = processor.image_processor.size
        least, most = self.min_pixels, self.max_pixels
        if most is not None and least is None:
            least = min(size["shortest_edge"], most)
        if least is not None and most is None:
            most = max(size["longest_edge"], least)
        limit_pixels(processor, least, most)
        return replace(self, min_pixels=None, max_pixels=None)

    def open(self, ref: ImageRef) -> Image.Image:
        """The first frame, upright, RGB, within the pixel limits. Raises `BadRowError`."""
        with self.file(ref) as file, _decoder_errors():
            image = _read_header(file, self.limit)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return fit_pixels(to_rgb(upright), self.min_pixels, self.max_pixels)

    def probe(self, ref: ImageRef) -> tuple[tuple[int, int], list[RowIssue]]:
        """((width, height) as `open` would give it before resizing, warnings). Decodes the entire file, because the
        header of a truncated one is complete; a JPEG at an eighth of its size, which is faster."""
        with self.file(ref) as file, _decoder_errors():
            image = _read_header(file, self.limit)
            size, found = oriented_size(image), _warnings(image)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return size, found

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """(width, height) upright, from the header alone."""
        with self.file(ref) as file, _decoder_errors():
            return oriented_size(_read_header(file, self.limit))

    def folder(self, ref: ImageRef) -> str | None:
        """The real path of a reference that is a folder; None: it is not. Raises `BadRowError`."""
        if ref.path is None:
            return None
        real = self._real_path(ref.path, folder=True)
        return real if os.path.isdir(real) else None

    def file(self, ref: ImageRef) -> BinaryIO:
        if ref.data is not None:
            return io.BytesIO(ref.data)
        if ref.url is not None:
            return _download(ref.url, self.allow_urls)
        return open(self._real_path(ref.path or ""), "rb")

    def _real_path(self, path: str, folder: bool = False) -> str:
        """The real path, which must be a regular file (or a folder, where that is allowed) below the real root: no
        `..`, no device, and no link that leads out, unless `follow_links` allows its target."""
        if self.root is None:
            raise BadRowError("missing_image", f"{path!r} is a path, and no image folder was given")
        root, shown = os.path.realpath(self.root), repr(path[:200])
        if "\0" in path:
            raise BadRowError("missing_image", f"{shown}: a null byte in the name")
        try:
            real = os.path.realpath(os.path.join(root, path))
            if not _is_below(real, root):
                self._check_link(path, root, real)
            mode = os.stat(real).st_mode
            if not stat.S_ISREG(mode) and not (folder and stat.S_ISDIR(mode)):
                raise BadRowError("missing_image", f"{shown} is not a file")
        except OSError as error:
            raise BadRowError("missing_image", f"{shown}: {error.strerror}") from None
        return real

    def _check_link(self, path: str, root: str, real: str) -> None:
        """Refuse a path that leaves the root, unless it is by a link that `follow_links` allows."""
        shown = repr(path[:200])
        named_below = _is_below(os.path.join(root, path), root) and ".." not in Path(path).parts
        if not named_below:  # the row itself names a place outside: never allowed
            raise BadRowError("outside_folder", f"{shown} leaves the image folder")
        if self.follow_links is True:
            return
        if not self.follow_links:
            raise BadRowError(
                "outside_folder",
                f"{shown} is a link that leaves the image folder; to allow links, set data.follow_links to true, or to "
                "a list of the folders that they may lead to",
            )
        if not any(_is_below(real, os.path.realpath(allowed)) for allowed in self.follow_links):
            raise BadRowError(
                "outside_folder",
                f"{shown} is a link to a place outside the image folder and outside the folders of data.follow_links",
            )


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF orientation is applied."""
    width, height = image.size
    return (height, width) if image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: transparent pixels become white; 16 bit and float are scaled to 8 bit, not clipped."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scale_to_8_bit(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit greys use the top 8 bits; 32-bit and float, whose scale is unknown, the range that they have."""
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
    """(width, height) scaled, aspect ratio kept, so that the area is between the two limits."""
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


def _download(url: str, allowed: bool) -> BinaryIO:
    """An image over http(s): refused unless the user allowed it, and limited in size."""
    if not allowed:
        raise BadRowError("url_refused", url[:200])
    if not url.lower().startswith(("http://", "https://")):
        raise BadRowError("url_refused", f"{url[:200]}: only http and https are supported")
    try:
        with urllib.request.urlopen(url, timeout=URL_TIMEOUT_SECONDS) as answer:
            data = answer.read(MAX_URL_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        raise BadRowError("url_unreachable", f"{url[:200]}: {error}") from None
    if len(data) > MAX_URL_BYTES:
        raise BadRowError("url_unreachable", f"{url[:200]}: more than {MAX_URL_BYTES} bytes")
    return io.BytesIO(data)


def _read_header(file: BinaryIO, limit: int) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > limit:
        raise BadRowError("bomb", f"{width} x {height} pixels; the limit is {limit}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadRowError("extreme_shape", f"{width} x {height} pixels")
    return image


def _warnings(image: Image.Image) -> list[RowIssue]:
    found = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph with its preview
        found.append(RowIssue("animated_image", f"{image.n_frames} frames"))  # type: ignore[attr-defined]
    if image.mode != "RGB":
        found.append(RowIssue("mode_converted", f"mode {image.mode}"))
    if oriented_size(image) != image.size or image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
        found.append(RowIssue("rotated_image", f"EXIF orientation {image.getexif().get(_EXIF_ORIENTATION)}"))
    if min(image.size) < TINY:
        found.append(RowIssue("tiny_image", f"{image.width} x {image.height} pixels"))
    return found


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Every exception that Pillow raises for a damaged file becomes one `BadRowError`; decoders raise many types."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF, palettes with transparency, sizes near the bomb limit
        try:
            yield
        except BadRowError:
            raise
        except Image.DecompressionBombError as error:
            raise BadRowError("bomb", str(error)[:160]) from None
        except Exception as error:
            truncated = "truncated" in str(error).lower()
            code = "truncated_image" if truncated else "unreadable_image"
            raise BadRowError(code, f"{type(error).__name__}: {str(error)[:160]}") from None
