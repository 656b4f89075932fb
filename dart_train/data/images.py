"""Opening pictures that nobody has vouched for: inside one folder, within limits, always as RGB."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from .findings import BadRow, Finding
from .pixels import fit_pixels, oriented_size, to_rgb
from .sample import ImageRef
from .urls import fetch

# Only decoders of plain pictures: Pillow would hand an .eps to Ghostscript, and knows many formats nobody fuzzes.
Image.init()
FORMATS = tuple(f for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if f in Image.OPEN)
MAX_PIXELS = 100_000_000
MAX_ASPECT = 200
TINY = 8


@dataclass(frozen=True)
class ImageStore:
    """Opens image references below `root`. `max_pixels` and `min_pixels` resize; `limit` refuses."""

    root: Path | None = None
    allow_urls: bool = False
    max_pixels: int | None = None
    min_pixels: int | None = None
    limit: int = MAX_PIXELS

    def open(self, ref: ImageRef) -> Image.Image:
        """The first frame, upright, RGB, within the pixel limits. Raises `BadRow`."""
        with self._file(ref) as file, _decoding():
            image = _read_header(file, self.limit)
            image.load()
            upright = ImageOps.exif_transpose(image)
            return fit_pixels(to_rgb(upright), self.min_pixels, self.max_pixels)

    def probe(self, ref: ImageRef) -> tuple[tuple[int, int], list[Finding]]:
        """((width, height) as `open` would give it before resizing, warnings). Decodes all of the file, because
        a truncated one looks whole in its header; a JPEG at an eighth of its size, which is cheaper."""
        with self._file(ref) as file, _decoding():
            image = _read_header(file, self.limit)
            size, found = oriented_size(image), _warnings(image)
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            return size, found

    def size(self, ref: ImageRef) -> tuple[int, int]:
        """(width, height) upright, from the header alone."""
        with self._file(ref) as file, _decoding():
            return oriented_size(_read_header(file, self.limit))

    def _file(self, ref: ImageRef) -> BinaryIO:
        if ref.data is not None:
            return io.BytesIO(ref.data)
        if ref.url is not None:
            return fetch(ref.url, self.allow_urls)
        return open(self._inside(ref.path or ""), "rb")

    def _inside(self, path: str) -> str:
        """The real path, which must be a regular file below the real root: no `..`, no link out, no device."""
        if self.root is None:
            raise BadRow("missing_image", f"{path!r} is a path, and no image folder was given")
        root, shown = os.path.realpath(self.root), repr(path[:200])
        if "\0" in path:
            raise BadRow("missing_image", f"{shown}: a null byte in the name")
        try:
            real = os.path.realpath(os.path.join(root, path))
            if os.path.commonpath([root, real]) != root:
                raise BadRow("outside_folder", f"{shown} leaves the image folder")
            if not stat.S_ISREG(os.stat(real).st_mode):
                raise BadRow("missing_image", f"{shown} is not a file")
        except OSError as error:
            raise BadRow("missing_image", f"{shown}: {error.strerror}") from None
        return real


def _read_header(file: BinaryIO, limit: int) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > limit:
        raise BadRow("bomb", f"{width} x {height} pixels; the limit is {limit}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadRow("extreme_shape", f"{width} x {height} pixels")
    return image


def _warnings(image: Image.Image) -> list[Finding]:
    found = []
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a photograph with a preview beside it
        found.append(Finding("animated_image", f"{image.n_frames} frames"))  # type: ignore[attr-defined]
    if image.mode != "RGB":
        found.append(Finding("mode_converted", f"mode {image.mode}"))
    if oriented_size(image) != image.size or image.getexif().get(0x0112, 1) not in (0, 1):
        found.append(Finding("rotated_image", f"EXIF orientation {image.getexif().get(0x0112)}"))
    if min(image.size) < TINY:
        found.append(Finding("tiny_image", f"{image.width} x {image.height} pixels"))
    return found


@contextmanager
def _decoding() -> Iterator[None]:
    """Whatever Pillow raises on a damaged file becomes one `BadRow`: decoders raise almost any exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF, palettes with transparency, sizes near the bomb limit
        try:
            yield
        except BadRow:
            raise
        except Image.DecompressionBombError as error:
            raise BadRow("bomb", str(error)[:160]) from None
        except Exception as error:
            truncated = "truncated" in str(error).lower()
            code = "truncated_image" if truncated else "unreadable_image"
            raise BadRow(code, f"{type(error).__name__}: {str(error)[:160]}") from None
