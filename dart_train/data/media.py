"""References to images and videos in a row, in every form that data sets write them. No file is opened here."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any

from .issues import BadRowError
from .sample import ImageRef, Media, VideoRef

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"
IMAGE_PLACEHOLDER = ImageRef()  # for a mark, until the row's own image replaces it
VIDEO_PLACEHOLDER = VideoRef()
Piece = str | Media
_MARKS: dict[str, Media] = {IMAGE_MARK: IMAGE_PLACEHOLDER, VIDEO_MARK: VIDEO_PLACEHOLDER}
_MARK = re.compile("|".join(map(re.escape, _MARKS)))
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.ASCII)
_URL = re.compile(r"https?://", re.ASCII | re.IGNORECASE)
_TEXT_TYPES = {"text", "input_text", "output_text"}
_IMAGE_TYPES = {"image", "image_url", "input_image"}
_VIDEO_TYPES = {"video", "video_url", "input_video"}
_IMAGE_KEYS = ("image", "path", "url", "image_url", "base64", "bytes")
_VIDEO_KEYS = ("video", "path", "url", "video_url", "base64", "bytes", "frames")
_FRAME_NAME = re.compile(r"\.(jpe?g|png|bmp|tiff?|ppm|avif)$", re.IGNORECASE)


def read_content(content: Any) -> list[Piece]:
    """The content of one message: a string with `<image>` and `<video>` marks, or a list of parts."""
    if isinstance(content, str):
        return split_marks(content)
    if isinstance(content, dict):
        return read_part(content)
    if isinstance(content, list):
        return [piece for part in content for piece in read_part(part)]
    raise BadRowError("bad_type", f"content is {type(content).__name__}; expected text or a list of parts")


def split_marks(text: str) -> list[Piece]:
    """'a <image>\\nb' -> ['a ', placeholder, 'b']. The line break between a mark and its text belongs to the data
    format, not to the question: the chat template writes its own."""
    check_text(text)
    pieces: list[Piece] = []
    chunks, marks = _MARK.split(text), _MARK.findall(text)
    for i, chunk in enumerate(chunks):
        if i > 0:
            pieces.append(_MARKS[marks[i - 1]])
            chunk = chunk.removeprefix("\n")
        if i < len(chunks) - 1:
            chunk = chunk.removesuffix("\n")
        if chunk:
            pieces.append(chunk)
    return pieces


def has_marks(text: str) -> bool:
    return _MARK.search(text) is not None


def read_part(part: Any) -> list[Piece]:
    """One part of an OpenAI-like content list."""
    if isinstance(part, str):
        return split_marks(part)
    if not isinstance(part, dict):
        raise BadRowError("bad_type", f"a content part is {type(part).__name__}; expected a mapping with a type")
    kind = part.get("type")
    if kind is None:
        kind = "text" if isinstance(part.get("text"), str) else "video" if part.get("video") else "image"
    if not isinstance(kind, str) or kind not in _TEXT_TYPES | _IMAGE_TYPES | _VIDEO_TYPES:
        raise BadRowError("unsupported_media", f"content part of type {shown(kind)}; expected text, image or video")
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRowError("bad_type", f"the text of a part is {type(text).__name__}")
        return split_marks(text)
    return [_part_video(part) if kind in _VIDEO_TYPES else _part_image(part)]


def _part_image(part: dict[str, Any]) -> ImageRef:
    key, value = next(((key, part[key]) for key in _IMAGE_KEYS if part.get(key) is not None), ("", None))
    if not key:
        return IMAGE_PLACEHOLDER
    return decode_base64(value) if key == "base64" else read_image(value)


def _part_video(part: dict[str, Any]) -> VideoRef:
    key, value = next(((key, part[key]) for key in _VIDEO_KEYS if part.get(key) is not None), ("", None))
    if not key:
        return VIDEO_PLACEHOLDER
    fps = _frame_rate(part.get("fps", part.get("sample_fps")))
    return VideoRef(source=decode_base64(value), fps=fps) if key == "base64" else read_video(value, fps)


def read_image(value: Any, kind: str = "an image") -> ImageRef:
    """A path, a URL, a data URI, bytes, or the {bytes, path} of Hugging Face `datasets`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ImageRef(data=bytes(value))
    if isinstance(value, dict):
        return _from_mapping(value, kind)
    if not isinstance(value, str) or not value:
        raise BadRowError("bad_type", f"{kind} is {type(value).__name__}; expected a path, bytes, base64 or a URL")
    check_text(value)
    if match := _DATA_URI.match(value):
        return decode_base64(value[match.end() :])
    if _URL.match(value):
        return ImageRef(url=value)
    return ImageRef(path=value.removeprefix("file://"))


def _from_mapping(value: dict[str, Any], kind: str) -> ImageRef:
    inner = value.get("bytes")
    if inner is None:
        inner = value.get("url") or value.get("path")
    if inner is None and value.get("base64") is not None:
        return decode_base64(value["base64"])
    if isinstance(inner, dict):
        raise BadRowError("bad_type", f"{kind} is a mapping inside a mapping")
    return read_image(inner, kind)


def read_video(value: Any, fps: float | None = None) -> VideoRef:
    """A file, an animated image or a folder, in the forms of an image; a list of frames; or {frames or path, fps}."""
    if isinstance(value, Mapping) and value.get("fps") is not None:
        fps = _frame_rate(value["fps"])
    frames = value.get("frames") if isinstance(value, Mapping) else value
    if isinstance(frames, list):
        if not frames:
            raise BadRowError("bad_type", "a video has no frames")
        return VideoRef(frames=tuple(read_image(frame, "a frame") for frame in frames), fps=fps)
    return VideoRef(source=read_image(value, "a video"), fps=fps)


def row_images(row: Mapping[str, Any]) -> list[ImageRef]:
    """Of the keys `image` or `images`."""
    value = row.get("image") if row.get("image") is not None else row.get("images")
    if value is None or value == "" or value == []:
        return []
    return [read_image(item) for item in (value if isinstance(value, list) else [value])]


def row_videos(row: Mapping[str, Any]) -> list[VideoRef]:
    """Of the keys `video` or `videos`. `video` with a list of image files is one video of these frames; `videos` is a
    list of videos."""
    single, several = row.get("video"), row.get("videos")
    fps = _frame_rate(row.get("fps")) if single or several else None
    value = single if single is not None else several
    if value is None or value == "" or value == []:
        return []
    if not isinstance(value, list) or (single is not None and all(map(_is_frame, value))):
        return [read_video(value, fps)]
    return [read_video(item, fps) for item in value]


def _is_frame(value: Any) -> bool:
    return isinstance(value, str) and _FRAME_NAME.search(value) is not None


def _frame_rate(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise BadRowError("bad_type", f"fps of a video is {shown(value)}; expected a number above 0")
    return float(value)


def decode_base64(value: Any) -> ImageRef:
    if not isinstance(value, str):
        raise BadRowError("bad_type", f"base64 is {type(value).__name__}; expected text")
    if match := _DATA_URI.match(value):
        value = value[match.end() :]
    try:
        return ImageRef(data=base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadRowError("bad_base64", str(error)) from None


def check_text(text: str) -> None:
    """A lone surrogate is legal JSON but not text: tokenizers and files refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRowError("bad_text", f"{error.reason} at character {error.start}") from None


def shown(value: Any) -> str:
    """A value for a message: never the repr of something nested, which may be huge or infinitely deep."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__
