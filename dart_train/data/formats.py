"""The format of a row, and the row as a `Sample`. Pure: no file is opened; invalid data raises only `BadRowError`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .issues import BadRowError
from .media import (
    IMAGE_MARK,
    IMAGE_PLACEHOLDER,
    VIDEO_MARK,
    VIDEO_PLACEHOLDER,
    Piece,
    check_text,
    has_marks,
    row_images,
    row_videos,
    shown,
    split_marks,
)
from .sample import Media, Sample, Turn
from .turns import check_order, read_tools, read_turn

Row = Mapping[str, Any]
_TAR_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_TAR_VIDEOS = ("mp4", "webm", "mkv", "mov", "avi")
_LISTS = {"llava": "conversations", "messages": "messages", "openai": "messages"}  # format -> its list of turns
# Formats with one question and answer in a row -> the keys of both.
_FLAT = {"qa": ("question", "answer"), "query": ("query", "response"), "alpaca": ("instruction", "output")}


def normalise(row: Any, columns: Mapping[str, str] | None = None, format: str = "auto", row_id: str = "") -> Sample:
    """A row in any of the formats -> a `Sample`. `columns` maps our names (id, image, question, ...) to the row's.
    Raises `BadRowError`."""
    row = _rename(_unpack_tar(_parsed(row)), columns or {})
    name = detect(row) if format in ("auto", "datasets") else format  # "datasets": columns of any of the formats
    if name not in READERS:
        raise ValueError(f"format: got {format!r}; expected auto or one of {', '.join(READERS)}")
    if name in _LISTS and not isinstance(_turn_list(row, name), list):
        raise BadRowError("unknown_format", f"format {name} needs a list of turns; the row has {_keys(row)}")
    _refuse_media(row)
    turns = READERS[name](row)
    if not turns:
        raise BadRowError("empty_conversation")
    turns = _fill(_with_system(turns, row), row)
    check_order(turns)
    return Sample(_row_id(row, row_id), tuple(turns), tools=read_tools(row))


def detect(row: Row) -> str:
    """llava: `conversations` of from/value. messages: role/content, marks in strings. openai: content is a list
    of parts. qa, query (ms-swift), alpaca: one question and one answer a row, the latter two after a `history`."""
    if isinstance(_turn_list(row, "llava"), list):
        return "llava"
    turns = _turn_list(row, "messages")
    if isinstance(turns, list):
        parts = any(isinstance(turn, Mapping) and isinstance(turn.get("content"), list) for turn in turns)
        return "openai" if parts else "messages"
    for name, keys in _FLAT.items():
        if all(row.get(key) is not None for key in keys):
            return name
    raise BadRowError(
        "unknown_format",
        "no conversations, messages, question and answer, query and response, or instruction and output; the row has "
        f"{_keys(row)}",
    )


def _turns(name: str) -> Callable[[Row], list[Turn]]:
    return lambda row: [read_turn(turn) for turn in _turn_list(row, name)]


def _question_answer(row: Row) -> list[Turn]:
    """A flat row; of several answers the first is used."""
    answer = _value(row, "answer")
    if isinstance(answer, list) and answer:
        answer = answer[0]
    return _exchanges(row, [(_as_text(_value(row, "question")), _as_text(answer))])


def _query_response(row: Row) -> list[Turn]:
    return _exchanges(row, [*_history(row), (_as_text(_value(row, "query")), _as_text(_value(row, "response")))])


def _alpaca(row: Row) -> list[Turn]:
    """The input, which is often empty, belongs to the question."""
    given = _as_text(row["input"]) if row.get("input") is not None else ""
    question = _as_text(_value(row, "instruction")) + (f"\n{given}" if given else "")
    return _exchanges(row, [*_history(row), (question, _as_text(_value(row, "output")))])


def _history(row: Row) -> list[tuple[str, str]]:
    """Earlier questions and answers: a list of pairs."""
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise BadRowError("bad_type", "history is not a list of [question, answer]")
    return [(_as_text(question), _as_text(answer)) for question, answer in history]


def _exchanges(row: Row, exchanges: list[tuple[str, str]]) -> list[Turn]:
    """Images and videos come first unless questions mark their places."""
    first: list[Piece] = []
    if not any(has_marks(question) for question, _ in exchanges):
        first += [IMAGE_PLACEHOLDER] * len(row_images(row))
        first += [VIDEO_PLACEHOLDER] * len(row_videos(row))
    turns = []
    for question, answer in exchanges:
        turns += [Turn("user", (*first, *split_marks(question))), Turn("assistant", tuple(split_marks(answer)))]
        first = []
    return turns


READERS: dict[str, Callable[[Row], list[Turn]]] = {
    "llava": _turns("llava"), "messages": _turns("messages"), "openai": _turns("openai"), "qa": _question_answer,
    "query": _query_response, "alpaca": _alpaca,
}  # fmt: skip


def _turn_list(row: Row, name: str) -> Any:
    turns = row.get(_LISTS[name])
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # parquet often keeps them as JSON text
        return _load_json(turns)
    return turns


def _with_system(turns: list[Turn], row: Row) -> list[Turn]:
    """A `system` text of the row is its first turn."""
    text = row.get("system")
    if not isinstance(text, str) or not text.strip():
        return turns
    if turns[0].role == "system":
        raise BadRowError("role_order", "the row has a system text and a system turn")
    return [Turn("system", tuple(split_marks(text))), *turns]


def _fill(turns: list[Turn], row: Row) -> list[Turn]:
    """Every mark gets the row's next image or video; a row with too many or too few of either is bad."""
    if not row_images(row) and row_videos(row) and not any(VIDEO_PLACEHOLDER in turn.parts for turn in turns):
        turns = [_image_marks_as_videos(turn) for turn in turns]
    given: list[tuple[Media, str, str, list[Any]]] = [
        (IMAGE_PLACEHOLDER, IMAGE_MARK, "image", row_images(row)),
        (VIDEO_PLACEHOLDER, VIDEO_MARK, "video", row_videos(row)),
    ]
    for placeholder, mark, kind, media in given:
        marks = sum(part is placeholder for turn in turns for part in turn.parts)
        if marks != len(media):
            raise BadRowError("mark_mismatch", f"{marks} {mark} mark(s), {len(media)} {kind}(s)")
        supply = iter(media)
        turns = [
            replace(turn, parts=tuple(next(supply) if part is placeholder else part for part in turn.parts))
            for turn in turns
        ]
    return turns


def _image_marks_as_videos(turn: Turn) -> Turn:
    """LLaVA-Video writes `<image>` for a video too."""
    return replace(turn, parts=tuple(VIDEO_PLACEHOLDER if p is IMAGE_PLACEHOLDER else p for p in turn.parts))


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
    videos = [row[key] for key in _TAR_VIDEOS if row.get(key) is not None]
    flat = {"id": row["__key__"], **inner}
    flat |= {"image": None, "images": images} if images else {}
    return flat | ({"video": None, "videos": videos} if videos else {})


def _refuse_media(row: Row) -> None:
    for key in ("audio", "audios"):
        if row.get(key):
            raise BadRowError("unsupported_media", f"the row has {key}; only images and videos are supported")


def _value(row: Row, key: str) -> Any:
    if row.get(key) is None:
        raise BadRowError("unknown_format", f"the row has no {key}, only {_keys(row)}")
    return row[key]


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
