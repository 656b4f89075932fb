"""results.jsonl: every answer, written batch by batch, so that a killed comparison resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.io import append_jsonl, atomic_write, read_jsonl

RESULTS = "results.jsonl"
OTHER_SETTINGS = "results.old.jsonl"  # answers of settings that are not the current ones
AnswerRecord = dict[str, Any]
AnswerKey = tuple[str, str, str, str]  # fingerprint of the cell, set, id, key of the question


def answer_key(record: Mapping[str, Any]) -> AnswerKey:
    return (record["cell"], record["set"], record["id"], record["key"])


class AnswerStore:
    """The answers in a comparison's folder. Each rank appends to a file of its own; `finalize` merges them."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.file = folder / (RESULTS if rank == 0 else f"results.rank{rank}.jsonl")

    def append(self, records: Sequence[AnswerRecord]) -> None:
        append_jsonl(self.file, *records)

    def load_existing(self) -> dict[AnswerKey, AnswerRecord]:
        """All complete answers in the folder, of any rank and of any settings. Torn lines are skipped."""
        files = [self.folder / OTHER_SETTINGS, self.folder / RESULTS, *self._rank_files()]
        records = [record for file in files for record in read_jsonl(file, tolerant=True)]
        return {answer_key(each): each for each in records if {"cell", "set", "id", "key"} <= each.keys()}

    def finalize(self, wanted: Iterable[AnswerKey]) -> list[AnswerRecord]:
        """Writes the wanted answers to results.jsonl, in this order, and returns them. Answers of other settings go to
        results.old.jsonl, from where they are reused when their settings come back."""
        existing = self.load_existing()
        records = [existing.pop(key) for key in wanted]
        _write(self.folder / OTHER_SETTINGS, list(existing.values()))
        _write(self.folder / RESULTS, records)
        for file in self._rank_files():
            file.unlink()
        return records

    def _rank_files(self) -> list[Path]:
        return sorted(self.folder.glob("results.rank*.jsonl"))


def _write(file: Path, records: Sequence[AnswerRecord]) -> None:
    if records:
        atomic_write(file, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
    else:
        file.unlink(missing_ok=True)


def to_ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> "0-2,7"."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def from_ranges(text: str) -> list[int]:
    """The inverse of `to_ranges`."""
    ends = [part.split("-") for part in text.split(",") if part]
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]
