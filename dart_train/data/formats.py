"""Which format a row is in, and the row as a `Sample`. Pure: no file is opened, and junk raises `BadRow` only."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .findings import BadRow
from .parts import MARK, PLACEHOLDER, check_text, read_content, read_image, shown
from .sample import ImageRef, Sample, Turn

Row = Mapping[str, Any]
_ROLE_NAMES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
}  # fmt: skip
_TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")


def normalise(row: Any, columns: Mapping[str, str] | None = None, format: str = "auto", row_id: str = "") -> Sample:
    """Any row in any of the formats -> a `Sample`; `columns` maps our names (id, image, question, ...) to the row's."""
    row = _rename(_unpack_tar(_parsed(row)), columns or {})
    name = detect(row) if format in ("auto", "datasets") else format  # datasets: columns of any of the formats
    if name not in READERS:
        raise ValueError(f"format {format!r} is not known; expected auto or one of {', '.join(READERS)}")
    if name != "qa" and not isinstance(_turn_list(row, name), list):
        raise BadRow("unknown_format", f"format {name} needs a list of turns; the row has {_keys(row)}")
    _refuse_media(row)
    turns = _fill([_read_turn(role, content) for role, content in READERS[name](row)], _row_images(row))
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
    raise BadRow("unknown_format", f"no conversations, messages, or question and answer; the row has {_keys(row)}")


def _conversations(row: Row) -> list[tuple[Any, Any]]:
    return [_role_and_content(turn) for turn in _turn_list(row, "llava")]


def _messages(row: Row) -> list[tuple[Any, Any]]:
    return [_role_and_content(turn) for turn in _turn_list(row, "messages")]


def _question_answer(row: Row) -> list[tuple[Any, Any]]:
    """A flat row: the images come first unless the question says where, of several answers the first counts."""
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
        raise BadRow("bad_type", f"a turn is {type(turn).__name__}; expected a mapping")
    role = turn.get("from") if turn.get("from") is not None else turn.get("role")
    content = turn.get("value") if turn.get("value") is not None else turn.get("content")
    return role, content


def _read_turn(role: Any, content: Any) -> Turn:
    if not isinstance(role, str) or role.lower() not in _ROLE_NAMES:
        raise BadRow("unknown_role", f"role {shown(role)}; expected one of {', '.join(_ROLE_NAMES)}")
    if content is None:
        raise BadRow("empty_turn", f"a {role} turn has no content")
    return Turn(_ROLE_NAMES[role.lower()], tuple(read_content(content)))


def _row_images(row: Row) -> list[ImageRef]:
    value = row.get("image") if row.get("image") is not None else row.get("images")
    if value is None or value == "" or value == []:
        return []
    return [read_image(item) for item in (value if isinstance(value, list) else [value])]


def _fill(turns: list[Turn], images: list[ImageRef]) -> list[Turn]:
    """Every mark gets the row's next image; one too many or too few of either is a broken row."""
    marks = sum(part is PLACEHOLDER for turn in turns for part in turn.parts)
    if marks != len(images):
        raise BadRow("mark_mismatch", f"{marks} {MARK} mark(s), {len(images)} image(s)")
    supply = iter(images)
    return [Turn(t.role, tuple(next(supply) if part is PLACEHOLDER else part for part in t.parts)) for t in turns]


def _check_order(turns: list[Turn]) -> None:
    for turn in turns:
        has_text = any(text.strip() for text in turn.texts)
        if not has_text and (turn.role != "user" or len(turn.texts) == len(turn.parts)):
            raise BadRow("empty_turn", f"a {turn.role} turn is empty")
    roles = [turn.role for turn in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise BadRow("role_order", f"the roles are {', '.join(roles[:8]) or 'none'}")


def _parsed(row: Any) -> Row:
    if isinstance(row, str):
        row = _load_json(row)
    if not isinstance(row, Mapping):
        raise BadRow("bad_type", f"a row is {type(row).__name__}; expected a mapping")
    return row


def _load_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("bad_json", str(error)[:200]) from None


def _rename(row: Row, columns: Mapping[str, str]) -> Row:
    missing = [given for given in columns.values() if given not in row]
    if missing:
        raise BadRow("unknown_format", f"columns names {', '.join(missing)}; the row has {_keys(row)}")
    return {**row, **{ours: row[given] for ours, given in columns.items()}} if columns else row


def _unpack_tar(row: Row) -> Row:
    """A webdataset row: the fields lie in its .json, the pictures beside it under their file ending."""
    inner = row.get("json")
    if "__key__" not in row or not isinstance(inner, Mapping):
        return row
    pictures = [row[key] for key in _TAR_IMAGES if row.get(key) is not None]
    flat = {"id": row["__key__"], **inner}
    return {**flat, "image": None, "images": pictures} if pictures else flat


def _refuse_media(row: Row) -> None:
    for key in ("video", "videos", "audio", "audios"):
        if row.get(key):
            raise BadRow("unsupported_media", f"the row has {key}; only images are read")


def _as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadRow("bad_type", f"a question or an answer is {type(value).__name__}; expected text")
    return str(value)


def _row_id(row: Row, fallback: str) -> str:
    value = row.get("id")
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        return fallback
    check_text(str(value))
    return str(value)[:200]


def _keys(row: Row) -> str:
    return ", ".join(sorted(shown(key) for key in list(row)[:12])) or "nothing"
