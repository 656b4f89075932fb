"""From one message's content to text and images: marks, OpenAI parts, paths, bytes, base64 and URLs."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from .findings import BadRow
from .sample import ImageRef

MARK = "<image>"
PLACEHOLDER = ImageRef()  # stands where a mark was, until the row's own image takes its place
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.ASCII)
_URL = re.compile(r"https?://", re.ASCII | re.IGNORECASE)
_TEXT_TYPES = {"text", "input_text", "output_text"}
_IMAGE_TYPES = {"image", "image_url", "input_image"}
_PAYLOADS = ("image", "path", "url", "image_url", "base64", "bytes")


def read_content(content: Any) -> list[str | ImageRef]:
    """The content of one message: a string with `<image>` marks, or a list of parts."""
    if isinstance(content, str):
        return split_marks(content)
    if isinstance(content, dict):
        return read_part(content)
    if isinstance(content, list):
        return [piece for part in content for piece in read_part(part)]
    raise BadRow("bad_type", f"content is {type(content).__name__}; expected text or a list of parts")


def split_marks(text: str) -> list[str | ImageRef]:
    """'a <image>\\nb' -> ['a ', placeholder, 'b']. The line break that ties a mark to its text belongs to the
    data format, not to the question: the chat template writes its own."""
    check_text(text)
    pieces: list[str | ImageRef] = []
    chunks = text.split(MARK)
    for i, chunk in enumerate(chunks):
        if i > 0:
            pieces.append(PLACEHOLDER)
            chunk = chunk.removeprefix("\n")
        if i < len(chunks) - 1:
            chunk = chunk.removesuffix("\n")
        if chunk:
            pieces.append(chunk)
    return pieces


def read_part(part: Any) -> list[str | ImageRef]:
    """One part of an OpenAI-like content list."""
    if isinstance(part, str):
        return split_marks(part)
    if not isinstance(part, dict):
        raise BadRow("bad_type", f"a content part is {type(part).__name__}; expected a mapping with a type")
    kind = part.get("type")
    if kind is None:
        kind = "text" if isinstance(part.get("text"), str) else "image"
    if not isinstance(kind, str) or kind not in _TEXT_TYPES | _IMAGE_TYPES:
        raise BadRow("unsupported_media", f"content part of type {shown(kind)}; text and image are read")
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRow("bad_type", f"the text of a part is {type(text).__name__}")
        return split_marks(text)
    return [_part_image(part)]


def _part_image(part: dict[str, Any]) -> ImageRef:
    given = [(key, part[key]) for key in _PAYLOADS if part.get(key) is not None]
    if not given:
        return PLACEHOLDER
    key, value = given[0]
    return decode_base64(value) if key == "base64" else read_image(value)


def read_image(value: Any) -> ImageRef:
    """A path, a URL, a data URI, bytes, or the {bytes, path} of Hugging Face `datasets`."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ImageRef(data=bytes(value))
    if isinstance(value, dict):
        return _image_from_mapping(value)
    if not isinstance(value, str) or not value:
        raise BadRow("bad_type", f"an image is {type(value).__name__}; expected a path, bytes, base64 or a URL")
    check_text(value)
    if match := _DATA_URI.match(value):
        return decode_base64(value[match.end() :])
    if _URL.match(value):
        return ImageRef(url=value)
    return ImageRef(path=value.removeprefix("file://"))


def _image_from_mapping(value: dict[str, Any]) -> ImageRef:
    inner = value.get("bytes")
    if inner is None:
        inner = value.get("url") or value.get("path")
    if inner is None and value.get("base64") is not None:
        return decode_base64(value["base64"])
    if isinstance(inner, dict):
        raise BadRow("bad_type", "an image mapping inside an image mapping")
    return read_image(inner)


def decode_base64(value: Any) -> ImageRef:
    if not isinstance(value, str):
        raise BadRow("bad_type", f"base64 is {type(value).__name__}; expected text")
    if match := _DATA_URI.match(value):
        value = value[match.end() :]
    try:
        return ImageRef(data=base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError) as error:
        raise BadRow("bad_base64", str(error)) from None


def check_text(text: str) -> None:
    """A lone surrogate is legal JSON and no text: tokenizers and files refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("bad_text", f"{error.reason} at character {error.start}") from None


def shown(value: Any) -> str:
    """A value for a message: never the repr of something nested, which may be huge or endlessly deep."""
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__
