"""`RESULTS.md`: each drill that has passed writes its own row; the others' rows stay."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")
HEAD = """# Drills

Written by the drills themselves (`pytest -m drill`), a row by each that has passed.

| drill | what was done | how often | what was lost |
|---|---|---|---|
"""


def record(drill: str, done: str, times: int | str, lost: str) -> None:
    rows = {row.split("|")[1].strip(): row for row in _rows()}
    rows[drill] = f"| {drill} | {done} | {times} | {lost} |"
    FILE.write_text(HEAD + "".join(f"{rows[name]}\n" for name in sorted(rows)), encoding="utf-8")


def _rows() -> list[str]:
    if not FILE.exists():
        return []
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith("| drill |")]
