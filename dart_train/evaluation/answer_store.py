"""results.jsonl: every answer as it comes, so that a killed comparison goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "results.jsonl"
OLD = "results.old.jsonl"
Line = dict[str, Any]
Key = tuple[str, str, str, str]  # fingerprint of the cell, set, id, key of the question


def key_of(line: Mapping[str, Any]) -> Key:
    return (line["cell"], line["set"], line["id"], line["key"])


def part_of_rank(folder: Path, rank: int) -> Path:
    """Each rank writes a file of its own; they become one at the end."""
    return folder / (NAME if rank == 0 else f"results.rank{rank}.jsonl")


def parts(folder: Path) -> list[Path]:
    """Of what was asked before; the newest last."""
    whole = [folder / name for name in (OLD, NAME)]
    return [*(file for file in whole if file.is_file()), *sorted(folder.glob("results.rank*.jsonl"))]


def read(file: Path) -> Iterator[Line]:
    """A line that a killed process cut short is passed over."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                line = json.loads(text)
                key_of(line)
            except (ValueError, KeyError, TypeError):
                continue
            yield line


def known(folder: Path) -> dict[Key, Line]:
    """All answers that lie here, of these settings or others."""
    return {key_of(line): line for file in parts(folder) for line in read(file)}


class AnswerStore:
    """Appends whole batches; what a torn line left behind is closed first."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, lines: Sequence[Line]) -> None:
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        torn = self.file.exists() and not _ends_well(self.file)
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + text)


def settle(folder: Path, wanted: Iterable[Key]) -> list[Line]:
    """All ranks' answers as one file, in the order that is wanted; those of other settings go to `results.old.jsonl`,
    where they are found again when their settings come back."""
    found = known(folder)
    lines = [found.pop(key) for key in wanted]
    _write(folder / OLD, list(found.values()))
    _write(folder / NAME, lines)
    for file in folder.glob("results.rank*.jsonl"):
        file.unlink()
    return lines


def _write(file: Path, lines: Sequence[Line]) -> None:
    """Whole or not at all."""
    if not lines:
        file.unlink(missing_ok=True)
        return
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, file)


def _ends_well(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(0, os.SEEK_END)
        if content.tell() == 0:
            return True
        content.seek(-1, os.SEEK_END)
        return content.read(1) == b"\n"


def ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 7 as "0-2,7"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def numbers(text: str) -> list[int]:
    """What `ranges` wrote."""
    ends = [part.split("-") for part in text.split(",") if part]
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]
