"""The format of a row, and the row as a `Sample`. Pure: no file is opened; invalid data raises only `BadRowError`."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .issues import BadRowError
from .sample import ImageRef, Sample, Turn

MARK = "<image>"
PLACEHOLDER = ImageRef()  # for a mark, until the row's own image replaces it
_DATA_URI = re.compile(r"data:[\w/+.-]*;base64,", re.ASCII)
_URL = re.compile(r"https?://", re.ASCII | re.IGNORECASE)
_TEXT_TYPES = {"text", "input_text", "output_text"}
_IMAGE_TYPES = {"image", "image_url", "input_image"}
_PAYLOADS = ("image", "path", "url", "image_url", "base64", "bytes")
Row = Mapping[str, Any]
_ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
_TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


def normalise(row: Any, columns: Mapping[str, str] | None = None, format: str = "auto", row_id: str = "") -> Sample:
    """A row in any of the formats -> a `Sample`. `columns` maps our names (id, image, question, ...) to the row's.
    Raises `BadRowError`."""
    row = _rename(_unpack_tar(_parsed(row)), columns or {})
    name = detect(row) if format in ("auto", "datasets") else format  # "datasets": columns of any of the formats
    if name not in READERS:
        raise ValueError(f"format: got {format!r}; expected auto or one of {', '.join(READERS)}")
    if name != "qa" and not isinstance(_turn_list(row, name), list):
        raise BadRowError("unknown_format", f"format {name} needs a list of turns; the row has {_keys(row)}")
    _refuse_media(row)
    turns = [_read_turn(role, content) for role, content in READERS[name](row)]
    if not turns:
        raise BadRowError("empty_conversation")
    turns = _fill(turns, _row_images(row))
    _check_order(turns)
    return Sample(_row_id(row, row_id), tuple(turns))


def detect(row: Row) -> str:
    """llava: `conversations` of from/value. messages: role/content, marks in strings. openai: content is a list
    of parts. qa: one question and one answer a row."""
    if isinstance(_turn_list(row, "llava"), list):
        return "llava"
    turns = _turn_list(row, "messages")
    if isinstance(turns, list):
        parts = any(isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for turn in turns)
        return "openai" if parts else "messages"
    if row.get("question") is not None and row.get("answer") is not None:
        return "qa"
    raise BadRowError("unknown_format", f"no conversations, messages, or question and answer; the row has {_keys(row)}")


def read_content(content: Any) -> list[str | ImageRef]:
    """The content of one message: a string with `<image>` marks, or a list of parts."""
    if isinstance(content, str):
        return split_marks(content)
    if isinstance(content, dict):
        return read_part(content)
    if isinstance(content, list):
        return [piece for part in content for piece in read_part(part)]
    raise BadRowError("bad_type", f"content is {type(content).__name__}; expected text or a list of parts")


def split_marks(text: str) -> list[str | ImageRef]:
    """'a <image>\\nb' -> ['a ', placeholder, 'b']. The line break between a mark and its text belongs to the data
    format, not to the question: the chat template writes its own."""
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
        raise BadRowError("bad_type", f"a content part is {type(part).__name__}; expected a mapping with a type")
    kind = part.get("type")
    if kind is None:
        kind = "text" if isinstance(part.get("text"), str) else "image"
    if not isinstance(kind, str) or kind not in _TEXT_TYPES | _IMAGE_TYPES:
        raise BadRowError("unsupported_media", f"content part of type {shown(kind)}; only text and image are supported")
    if kind in _TEXT_TYPES:
        text = part.get("text")
        if not isinstance(text, str):
            raise BadRowError("bad_type", f"the text of a part is {type(text).__name__}")
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
        raise BadRowError("bad_type", f"an image is {type(value).__name__}; expected a path, bytes, base64 or a URL")
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
        raise BadRowError("bad_type", "an image mapping inside an image mapping")
    return read_image(inner)


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


def _conversations(row: Row) -> list[tuple[Any, Any]]:
    return [_role_and_content(turn) for turn in _turn_list(row, "llava")]


def _messages(row: Row) -> list[tuple[Any, Any]]:
    return [_role_and_content(turn) for turn in _turn_list(row, "messages")]


def _question_answer(row: Row) -> list[tuple[Any, Any]]:
    """A flat row: images come first unless the question marks their places; of several answers the first is used."""
    question, answer = _as_text(row["question"]), row["answer"]
    if isinstance(answer, list) and answer:
        answer = answer[0]
    marks = "" if MARK in question else MARK * len(_row_images(row))
    system = [("system", _as_text(row["system"]))] if row.get("system") else []
    return [*system, ("user", marks + question), ("assistant", _as_text(answer))]


READERS: dict[str, Callable[[Row], list[tuple[Any, Any]]]] = {
    "llava": _conversations, "messages": _messages, "openai": _messages, "qa": _question_answer,
}  # fmt: skip


def _turn_list(row: Row, name: str) -> Any:
    turns = row.get("conversations" if name == "llava" else "messages")
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # parquet often keeps them as JSON text
        return _load_json(turns)
    return turns


def _role_and_content(turn: Any) -> tuple[Any, Any]:
    if not isinstance(turn, Mapping):
        raise BadRowError("bad_type", f"a turn is {type(turn).__name__}; expected a mapping")
    role = turn.get("from") if turn.get("from") is not None else turn.get("role")
    content = turn.get("value") if turn.get("value") is not None else turn.get("content")
    return role, content


def _read_turn(role: Any, content: Any) -> Turn:
    if not isinstance(role, str) or role.lower() not in _ROLE_NAMES:
        raise BadRowError("unknown_role", f"role {shown(role)}; expected one of {', '.join(_ROLE_NAMES)}")
    if content is None:
        raise BadRowError("empty_turn", f"a {role} turn has no content")
    return Turn(_ROLE_NAMES[role.lower()], tuple(read_content(content)))


def _row_images(row: Row) -> list[ImageRef]:
    value = row.get("image") if row.get("image") is not None else row.get("images")
    if value is None or value == "" or value == []:
        return []
    return [read_image(item) for item in (value if isinstance(value, list) else [value])]


def _fill(turns: list[Turn], images: list[ImageRef]) -> list[Turn]:
    """Every mark gets the row's next image; a row with too many or too few of either is bad."""
    marks = sum(part is PLACEHOLDER for turn in turns for part in turn.parts)
    if marks != len(images):
        raise BadRowError("mark_mismatch", f"{marks} {MARK} mark(s), {len(images)} image(s)")
    supply = iter(images)
    return [Turn(t.role, tuple(next(supply) if part is PLACEHOLDER else part for part in t.parts)) for t in turns]


def _check_order(turns: list[Turn]) -> None:
    for turn in turns:
        has_text = any(text.strip() for text in turn.texts)
        if not has_text and (turn.role != "user" or len(turn.texts) == len(turn.parts)):
            raise BadRowError("empty_turn", f"a {turn.role} turn is empty")
    roles = [turn.role for turn in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise BadRowError("role_order", f"the roles are {', '.join(roles[:8]) or 'none'}")


def _parsed(row: Any) -> Row:
    if isinstance(row, str):
        row = _load_json(row)
    if not isinstance(row, Mapping):
        raise BadRowError("bad_type", f"a row is {type(row).__name__}; expected a mapping")
    return row


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRowError("bad_json", str(error)[:200]) from None


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = [given for given in columns.values() if given not in row]
    if missing:
        raise BadRowError("unknown_format", f"columns names {', '.join(missing)}; the row has {_keys(row)}")
    return {**row, **{ours: row[given] for ours, given in columns.items()}} if columns else row


def _unpack_tar(row: Row) -> Row:
    """A webdataset row: the fields are in its .json, the images in entries named by their file extensions."""
    inner = row.get("json")
    if "__key__" not in row or not isinstance(inner, Mapping):
        return row
    images = [row[key] for key in _TAR_IMAGES if row.get(key) is not None]
    flat = {"id": row["__key__"], **inner}
    return {**flat, "image": None, "images": images} if images else flat


def _refuse_media(row: Row) -> None:
    for key in ("video", "videos", "audio", "audios"):
        if row.get(key):
            raise BadRowError("unsupported_media", f"the row has {key}; only images are supported")


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRowError("bad_type", f"a question or an answer is {type(value).__name__}; expected text")
    return str(value)


def find_id(row: Any, columns: Mapping[str, str] | None = None) -> str:
    """The id that a row has, "" if it has none; also of a row that `normalise` refuses."""
    try:
        return _row_id(_unpack_tar(_rename(_parsed(row), {k: v for k, v in (columns or {}).items() if k == "id"})), "")
    except BadRowError:
        return ""


def _row_id(row: Row, fallback: str) -> str:
    value = row.get("id")
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return fallback
    check_text(str(value))
    return str(value)[:200]


def _keys(row: Row) -> str:
    return ", ".join(sorted(shown(key) for key in list(row)[:12])) or "no keys"
