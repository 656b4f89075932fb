"""Files that are complete or absent, files of JSON lines, a free port, and problems collected into one message."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# What an expected failure of a check raises. Any other exception is a bug, and is not collected.
EXPECTED_ERRORS: tuple[type[Exception], ...] = (ValueError, NotImplementedError, OSError, ImportError)


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replaces the file in one step: whenever the process is killed, the file has its old content or the new one.
    Text is written as UTF-8."""
    draft = path.with_name(f".{path.name}.unfinished")
    try:
        with draft.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def fsync_path(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_jsonl(path: Path, *records: Any) -> None:
    """Appends one line for each record, all of them or none: half a line on a full disk would spoil the next one.
    A last line that a killed process cut short is closed first."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as stream:
            if not _ends_with_newline(path, size):
                stream.write("\n")
            stream.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def _ends_with_newline(path: Path, size: int) -> bool:
    if size == 0:
        return True
    with path.open("rb") as stream:
        stream.seek(size - 1)
        return stream.read(1) == b"\n"


def read_jsonl(path: Path, tolerant: bool = False) -> list[Any]:
    """The records of a file of JSON lines; blank lines are skipped. tolerant: a missing file has no records, and
    lines that are not JSON objects (a killed process may cut one short) are skipped; else both raise."""
    return [record for _, record in _jsonl_lines(path, tolerant)]


def truncate_jsonl(path: Path, keep: Callable[[Any], bool]) -> None:
    """Removes the records that `keep` refuses and every line that is not a JSON object. The lines that remain are
    not changed. A missing file stays missing."""
    if path.exists():
        atomic_write(path, "".join(f"{text}\n" for text, record in _jsonl_lines(path, tolerant=True) if keep(record)))


def _jsonl_lines(path: Path, tolerant: bool) -> Iterator[tuple[str, Any]]:
    """(text, record) of each line."""
    if tolerant and not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace" if tolerant else "strict") as stream:
        for number, line in enumerate(stream, 1):
            text = line.rstrip("\n")
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except ValueError as error:
                if tolerant:
                    continue
                raise ValueError(f"{path}, line {number}: not valid JSON: {error}") from error
            if isinstance(record, dict) or not tolerant:
                yield text, record


def free_port() -> int:
    """A port of this machine that no process listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class ProblemCollector:
    """Collects what is wrong, so that one check that fails does not keep the others from being made.

    `errors`: the exceptions that count as a failed check; others are raised at once."""

    problems: list[str] = field(default_factory=list)
    errors: tuple[type[Exception], ...] = EXPECTED_ERRORS

    def collect(self, check: Callable[[], T], place: str = "") -> T | None:
        """Returns what `check` returns, or None where it fails; the failure becomes a problem."""
        try:
            return check()
        except self.errors as error:
            self.add([describe_error(error)], place)
            return None

    def add(self, problems: Iterable[str], place: str = "") -> None:
        """place: what they are about, such as the key of a recipe."""
        self.problems += [f"{place}: {problem}" if place else problem for problem in problems]

    def message(self, head: str) -> str:
        """All problems in one text, one a line."""
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        return "\n".join([f"{head}: {count}", *(f"  {problem}" for problem in self.problems)])

    def raise_if_any(self, head: str) -> None:
        """Raises one ValueError with all problems."""
        if self.problems:
            raise ValueError(self.message(head))


def describe_error(error: Exception) -> str:
    """Our own messages are complete; those of the system and of libraries need the name of their class."""
    own = isinstance(error, ValueError | NotImplementedError)
    return str(error) if own else f"{type(error).__name__}: {error}"
