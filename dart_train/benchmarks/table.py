"""Rows of measurements, as Markdown to read and as JSON to compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.tables import markdown_table
from ..profiling.device import DeviceFacts
from ..profiling.timing import Timing

Row = Mapping[str, Any]
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class BenchTable:
    """columns: header -> the text of a row's cell. Ratios come first: they compare across machines."""

    title: str
    columns: Mapping[str, Callable[[Row], str]]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        rows = [[write(row) for write in self.columns.values()] for row in self.rows]
        table = markdown_table(list(self.columns), rows, align=True)
        return "\n".join([f"## {self.title}", "", *(f"- {note}" for note in self.notes), "", table])


@dataclass(frozen=True)
class BenchReport:
    command: str
    facts: DeviceFacts
    tables: Sequence[BenchTable]

    def markdown(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        parts = [f"`{self.command}`", facts, *(table.markdown() for table in self.tables)]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path) -> tuple[Path, Path]:
        """bench.json and bench.md."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {table.title: {"notes": table.notes, "rows": table.rows} for table in self.tables}
        content = {"command": self.command, "facts": self.facts, "tables": tables}
        files = folder / "bench.json", folder / "bench.md"
        files[0].write_text(json.dumps(content, indent=1, default=vars) + "\n", encoding="utf-8")
        files[1].write_text(self.markdown(), encoding="utf-8")
        return files


def milliseconds(timing: Timing) -> str:
    """median [quartiles], to three digits."""
    median, low, high = (f"{_three_digits(1e3 * x)}" for x in (timing.median, timing.low, timing.high))
    if timing.repeats == 1:
        return median + ("" if timing.warm else " (first run)")
    return f"{median} [{low}, {high}]"


def ratio_text(ratio: Timing) -> str:
    """A ratio's median [quartiles]."""
    median, low, high = (f"{x:.3g}" for x in (ratio.median, ratio.low, ratio.high))
    return f"{median}x" if ratio.repeats == 1 else f"{median}x [{low}, {high}]"


def times(ratio: float) -> str:
    return f"{_three_digits(ratio)}x"


def percent(share: float) -> str:
    return f"{_three_digits(100 * share)}%"


def _three_digits(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"
