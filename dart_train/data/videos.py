"""Opening videos: a few frames of each, evenly spaced, from a file, an animated image, a folder or a list of images.

Which frames are used is known from the header alone, so that lengths can be counted without decoding."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageSequence

from ..config import VideoConfig
from .images import MAX_ASPECT, ImageStore, fitted_size, to_rgb
from .issues import BadRowError, RowIssue
from .sample import ImageRef, Media, VideoRef

DEFAULT_FPS = 24.0  # what transformers assumes of a video whose frame rate is not known
_FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True)
class VideoShape:
    """What the tokens of a video depend on. size: (width, height) of the frames that are used; indices: their numbers
    in the video of `total` frames; fps: frames per second of the video."""

    size: tuple[int, int]
    indices: tuple[int, ...]
    total: int
    fps: float

    def metadata(self) -> Any:
        """As processors of transformers take it."""
        from transformers.video_utils import VideoMetadata

        width, height = self.size
        return VideoMetadata(
            self.total, self.fps, width, height, self.total / self.fps, frames_indices=list(self.indices)
        )


MediaShape = tuple[int, int] | VideoShape


@dataclass(frozen=True)
class Clip:
    """The frames of a video that are used."""

    shape: VideoShape
    frames: list[Image.Image]


@dataclass(frozen=True)
class _Header:
    """size, frames and frame rate (None: not known) of a video, and what decodes its frames of given numbers."""

    size: tuple[int, int]
    total: int
    fps: float | None
    decode: Callable[[Sequence[int]], list[Image.Image]]


@dataclass(frozen=True)
class VideoStore:
    """Opens the videos of a row: paths are those of `images`, with the same rules."""

    images: ImageStore

    @property
    def options(self) -> VideoConfig:
        return self.images.video

    def shape(self, ref: VideoRef) -> VideoShape:
        """From headers alone. Raises `BadRowError`."""
        with self._open(ref) as header:
            return self._shape(header, ref)

    def open(self, ref: VideoRef) -> Clip:
        """Frames are RGB, of one size. Raises `BadRowError`."""
        with self._open(ref) as header, _errors():
            shape = self._shape(header, ref)
            numbers = sorted(set(shape.indices))
            found = header.decode(numbers)
            if not found:
                raise BadRowError("unreadable_video", "no frame could be decoded")
            found += [found[-1]] * (len(numbers) - len(found))  # a header may count more than there are
            resized = {n: _resize(to_rgb(frame), shape.size) for n, frame in zip(numbers, found, strict=True)}
            return Clip(shape, [resized[n] for n in shape.indices])

    def probe(self, ref: VideoRef) -> tuple[VideoShape, list[RowIssue]]:
        """Decodes the frames that are used, to find damage."""
        shape = self.open(ref).shape
        return shape, [RowIssue("single_frame", "")] if shape.total < 2 else []

    def _shape(self, header: _Header, ref: VideoRef) -> VideoShape:
        width, height = header.size
        if not header.total or not width or not height:
            raise BadRowError("unreadable_video", f"{header.total} frames of {width} x {height} pixels")
        if width * height > self.images.limit:
            raise BadRowError("bomb", f"{width} x {height} pixels; the limit is {self.images.limit}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise BadRowError("extreme_shape", f"{width} x {height} pixels")
        fps = ref.fps or header.fps
        indices = frame_indices(header.total, fps, self.options.frames, self.options.fps, self.images.equal_frames)
        size = fitted_size(header.size, None, self.options.max_pixels)
        return VideoShape(size, indices, header.total, fps or DEFAULT_FPS)

    @contextmanager
    def _open(self, ref: VideoRef) -> Iterator[_Header]:
        if ref.frames:
            yield self._of_images(ref.frames)
            return
        assert ref.source is not None
        folder = self.images.folder(ref.source)
        if folder is not None:
            files = sorted(file for file in os.listdir(folder) if Path(file).suffix.lower() in _FRAME_FILES)
            if not files:
                raise BadRowError("unreadable_video", f"{ref.source.path!r} is a folder without images")
            yield self._of_images([replace(ref.source, path=f"{ref.source.path}/{file}") for file in files])
            return
        with self.images.file(ref.source) as file:
            head = file.read(12)
            file.seek(0)
            animated = head[:4] in (b"GIF8", b"\x89PNG") or head[8:] == b"WEBP"
            with _errors(), _animated(file) if animated else _decoded(file) as header:
                yield header

    def _of_images(self, refs: Sequence[ImageRef]) -> _Header:
        return _Header(
            self.images.size(refs[0]), len(refs), None, lambda numbers: [self.images.open(refs[n]) for n in numbers]
        )


def open_media(store: ImageStore, ref: Media) -> Image.Image | Clip:
    """An image or the frames of a video. Raises `BadRowError`."""
    return VideoStore(store).open(ref) if isinstance(ref, VideoRef) else store.open(ref)


def media_shape(store: ImageStore, ref: Media) -> MediaShape:
    """(width, height) of an image as `open_media` gives it, or the shape of a video; from headers alone."""
    if isinstance(ref, VideoRef):
        return VideoStore(store).shape(ref)
    return fitted_size(store.size(ref), store.min_pixels, store.max_pixels)


def probe_media(store: ImageStore, ref: Media) -> tuple[MediaShape, list[RowIssue]]:
    """`media_shape`, and what is worth a warning, after the content was decoded to find damage."""
    if isinstance(ref, VideoRef):
        return VideoStore(store).probe(ref)
    size, issues = store.probe(ref)
    return fitted_size(size, store.min_pixels, store.max_pixels), issues


def frame_indices(
    total: int, fps: float | None, most: int, wanted_fps: float | None, exact: bool = False
) -> tuple[int, ...]:
    """Numbers of the frames that are used: `wanted_fps` for each second of the video where its frame rate is known, but
    at most `most`, evenly spaced from the first to the last. exact: `most` of any video, of a short one some again."""
    count = most if exact else min(total, most)
    if wanted_fps is not None and fps is not None:
        count = min(count, max(2, math.floor(total / fps * wanted_fps)))
    if count == 1:
        return (0,)
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))


@contextmanager
def _animated(file: BinaryIO) -> Iterator[_Header]:
    """GIF, WebP and APNG. Their frames last a number of milliseconds."""
    with Image.open(file, formats=("GIF", "WEBP", "PNG")) as image:
        image.load()  # a WebP's duration is known only then
        milliseconds = image.info.get("duration") or 0

        def decode(numbers: Sequence[int]) -> list[Image.Image]:
            wanted, found = set(numbers), []
            for number, frame in enumerate(ImageSequence.Iterator(image)):
                if number in wanted:
                    found.append(frame.copy())
            return found

        yield _Header(image.size, getattr(image, "n_frames", 1), 1000 / milliseconds if milliseconds else None, decode)


@contextmanager
def _decoded(file: BinaryIO) -> Iterator[_Header]:
    """A video file, by PyAV."""
    try:
        import av
    except ImportError:
        raise BadRowError(
            "no_decoder", "video files are decoded by PyAV, which is not installed: pip install 'dart-train[video]'"
        ) from None
    with av.open(file, mode="r", metadata_errors="replace") as container:
        if not container.streams.video:
            raise BadRowError("unreadable_video", "the file has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate) if stream.average_rate else None
        total = stream.frames
        if not total and stream.duration and stream.time_base and rate:
            total = round(float(stream.duration * stream.time_base) * rate)
        if not total and container.duration and rate:  # Matroska keeps the duration of the file only
            total = round(container.duration / 1e6 * rate)

        def decode(numbers: Sequence[int]) -> list[Image.Image]:
            wanted, found = set(numbers), []
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    found.append(frame.to_image())
                if number >= numbers[-1]:
                    break
            return found

        yield _Header((stream.codec_context.width, stream.codec_context.height), total, rate, decode)


@contextmanager
def _errors() -> Iterator[None]:
    """Decoders raise many types for damaged files."""
    try:
        yield
    except BadRowError:
        raise
    except Exception as error:
        raise BadRowError("unreadable_video", f"{type(error).__name__}: {str(error)[:160]}") from None


def _resize(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    return frame if frame.size == size else frame.resize(size, Image.Resampling.BICUBIC)
