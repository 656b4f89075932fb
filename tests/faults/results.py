"""The table of fault drills. A drill that has passed reports its row; with FAULT_RESULTS=FOLDER it is also written to
FOLDER/faults.md, next to the rows of earlier drills there. `data/results/faults.md` is copied from there by hand."""

from __future__ import annotations

import os
from pathlib import Path

HEAD = """# Fault drills

A row for each drill that has passed. To measure again: `FAULT_RESULTS=FOLDER python -m pytest -m drill tests/faults`
writes FOLDER/faults.md, a row for each drill that was run and passed; copy these rows here.

| drill | what was done | how often | what was lost |
|---|---|---|---|
"""


def record(drill: str, done: str, times: int | str, lost: str) -> None:
    row = f"| {drill} | {done} | {times} | {lost} |"
    print(row)
    folder = os.environ.get("FAULT_RESULTS")
    if folder:
        file = Path(folder) / "faults.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ") and "| drill |" not in line}
        file.write_text(HEAD + "".join(f"{line}\n" for _, line in sorted({**rows, drill: row}.items())), "utf-8")
