"""JSON files as lines of text: rows of people's data differ in types from line to line, and a columnar loader
refuses the whole file for one odd row. Kept as text, an odd row is one finding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TextIO

CHUNK = 1 << 20
LONGEST_ROW = 1 << 27
_SPACE = " \t\r\n"


def json_rows(files: list[str], stamps: list[str]) -> Iterator[dict[str, str]]:
    """{"text": one row} for each row of JSON Lines files and of files that hold one list, as LLaVA's do.
    `stamps` (sizes and times) only make the cache of `datasets` notice that a file has changed."""
    for path in files:
        with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
            for text in _list_items(file) if _starts_a_list(file) else file:
                if text.strip():
                    yield {"text": text.strip()}


def _starts_a_list(file: TextIO) -> bool:
    head = file.read(CHUNK).lstrip()
    file.seek(0)
    if not head.startswith("["):
        return False
    first_line, _, behind = head.partition("\n")  # a list on one line may end with a line break, as `jq -c` writes it
    lists_in_lines = first_line.rstrip().endswith("]") and bool(behind.strip()) and _is_json(first_line)
    return not lists_in_lines


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _list_items(file: TextIO) -> Iterator[str]:
    """The items of a top-level list as text, with one item and one chunk in memory. What cannot be parsed comes
    out as it is, shortened, once: nothing behind it can be trusted to be a row."""
    buffer, start, decoder = file.read(CHUNK).lstrip()[1:], 0, json.JSONDecoder()
    while True:
        start = _skip(buffer, start)
        if start < len(buffer) and buffer[start] == "]":
            return
        end = _item_end(decoder, buffer, start)
        if end is not None and _skip(buffer, end) < len(buffer):  # what follows shows that the item is complete
            yield buffer[start:end]
            start = end
            continue
        more = file.read(max(CHUNK, len(buffer) - start)) if len(buffer) - start < LONGEST_ROW else ""
        if not more:
            yield buffer[start : start + 200] or "[ without ]"
            return
        buffer, start = buffer[start:] + more, 0


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in _SPACE + ",":
        position += 1
    return position


def _item_end(decoder: json.JSONDecoder, text: str, start: int) -> int | None:
    try:
        return decoder.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None
