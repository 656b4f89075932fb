"""Files that are complete or absent, JSON lines that survive a kill and a full disk, problems reported together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dart_train.common import io
from dart_train.common.io import ProblemCollector, append_jsonl, atomic_write, read_jsonl, truncate_jsonl


def test_atomic_write_replaces_text_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    atomic_write(file, "grün")
    assert file.read_text(encoding="utf-8") == "grün"
    atomic_write(file, b"\x00\xff")
    assert file.read_bytes() == b"\x00\xff" and list(tmp_path.iterdir()) == [file]


def test_atomic_write_that_fails_keeps_the_old_file_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "table.csv"
    atomic_write(file, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_append_jsonl_closes_a_line_that_was_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    append_jsonl(file, {"step": 1})
    with file.open("a") as stream:
        stream.write('{"step": 2, "lo')
    append_jsonl(file, {"step": 3}, {"step": 4})
    assert [record["step"] for record in read_jsonl(file, tolerant=True)] == [1, 3, 4]


def test_append_jsonl_writes_all_records_or_none(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    append_jsonl(file, {"step": 1})

    class Broken(dict):  # type: ignore[type-arg]
        def items(self) -> object:  # type: ignore[override]
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        append_jsonl(file, {"step": 2, "text": "x" * 100_000}, Broken(step=3))
    assert read_jsonl(file) == [{"step": 1}]


def test_read_jsonl_refuses_what_tolerant_skips(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert read_jsonl(file, tolerant=True) == []
    with pytest.raises(FileNotFoundError):
        read_jsonl(file)
    file.write_text('{"a": 1}\n\n7\n{"a"')
    assert read_jsonl(file, tolerant=True) == [{"a": 1}]
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 4: not valid JSON"):
        read_jsonl(file)


def test_truncate_jsonl_keeps_lines_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    truncate_jsonl(file, lambda record: True)
    assert not file.exists()
    file.write_text('{"step":1,  "loss": 1e-3}\n{"step": 2}\n{"step": 3}\n{"st')
    truncate_jsonl(file, lambda record: record["step"] != 2)
    assert file.read_text() == '{"step":1,  "loss": 1e-3}\n{"step": 3}\n'


def test_problems_are_reported_together() -> None:
    problems = ProblemCollector()
    problems.raise_if_any("cannot run")

    def missing() -> None:
        raise FileNotFoundError("no such folder")

    def wrong() -> None:
        raise ValueError("7 is not a method")

    assert problems.collect(lambda: 3) == 3
    assert problems.collect(missing, "model.path") is None and problems.collect(wrong) is None
    problems.add(["x", "y"], "data")
    with pytest.raises(ValueError) as error:
        problems.raise_if_any("cannot run")
    assert str(error.value).splitlines() == [
        "cannot run: 4 problems", "  model.path: FileNotFoundError: no such folder", "  7 is not a method",
        "  data: x", "  data: y",
    ]  # fmt: skip
    with pytest.raises(KeyError):  # a bug is not a problem of the user's
        problems.collect(lambda: {}["a"])


def test_free_port_can_be_bound() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", io.free_port()))
