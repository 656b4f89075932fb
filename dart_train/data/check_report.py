"""Reports on single rows, added up: what check.json holds and what a person reads."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .issues import CODES, ERROR, Finding

if TYPE_CHECKING:
    from .check import RowReport

_EXAMPLES = 5
_BINS = 12
_BAR = 40
_COLUMNS = {
    "total": "all tokens",
    "visual": "visual tokens",
    "visual_reduced": "visual tokens, reduced",
    "total_reduced": "all tokens, reduced",
}


@dataclass
class Summary:
    """Grows by a few numbers a row."""

    reducers: Sequence[Any] = ()
    rows: int = 0
    dropped: int = 0
    with_images: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    columns: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in _COLUMNS})

    def add(self, report: RowReport) -> None:
        self.rows += 1
        self.dropped += any(f.severity == ERROR or f.code == "too_long" for f in report.findings)
        for finding in report.findings:
            self.note(report.id, finding)
        if report.total:
            visual, kept = sum(report.visual), report.kept(self.reducers)
            self.with_images += visual > 0
            values = (report.total, visual, kept, report.total - visual + kept)
            for name, value in zip(_COLUMNS, values if self.reducers else values[:2], strict=False):
                self.columns[name].append(value)

    def note(self, row_id: str, finding: Finding) -> None:
        self.counts[finding.code] = self.counts.get(finding.code, 0) + 1
        shown = self.examples.setdefault(finding.code, [])
        if len(shown) < _EXAMPLES:
            shown.append({"id": row_id, "message": finding.message})

    @property
    def errors(self) -> int:
        return sum(count for code, count in self.counts.items() if CODES[code][0] == ERROR)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": 1,
            "rows": self.rows,
            "usable": self.rows - self.dropped,
            "dropped": self.dropped,
            "errors": self.errors,
            "findings": {code: self._finding(code) for code in CODES if code in self.counts},
            "tokens": {name: _statistics(values) for name, values in self.columns.items() if values},
        }

    def _finding(self, code: str) -> dict[str, Any]:
        severity, meaning = CODES[code]
        return {"severity": severity, "count": self.counts[code], "meaning": meaning, "examples": self.examples[code]}


def _statistics(values: array[int]) -> dict[str, Any]:
    numbers = np.frombuffer(values, dtype=np.int64)
    counts, edges = np.histogram(numbers, bins=_edges(int(numbers.min()), int(numbers.max())))
    marks = dict(zip(("median", "p95", "p99"), np.percentile(numbers, (50, 95, 99)).tolist(), strict=True))
    return {
        "sum": int(numbers.sum()),
        "mean": float(numbers.mean()),
        "min": int(numbers.min()),
        **marks,
        "max": int(numbers.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _edges(low: int, high: int) -> np.ndarray:
    """Bins of equal whole width that hold all of low ... high."""
    width = max(1, -(-(high - low + 1) // _BINS))
    return low + width * np.arange(-(-(high - low + 1) // width) + 1)


def as_text(summary: dict[str, Any]) -> str:
    """What a person reads."""
    lines = [f"{summary['rows']} rows: {summary['usable']} usable, {summary['dropped']} dropped"]
    for severity, title in ((ERROR, "errors: these rows are dropped"), ("warning", "warnings")):
        found = {code: item for code, item in summary["findings"].items() if item["severity"] == severity}
        lines += ["", title] if found else []
        for code, item in found.items():
            first = item["examples"][0]
            lines.append(f"  {item['count']:>8}  {code}: {item['meaning']}")
            lines.append(f"            first: {first['id']}" + (f": {first['message']}" if first["message"] else ""))
    return "\n".join([*lines, *_tokens_text(summary["tokens"])])


def _tokens_text(tokens: dict[str, Any]) -> list[str]:
    if not tokens:
        return ["", "token lengths: not measured (no row could be, or no model was named: --model FOLDER)"]
    lines = ["", f"{'tokens a row':<24}{'min':>8}{'median':>8}{'mean':>8}{'95%':>8}{'max':>8}{'sum':>14}"]
    for name, title in ((name, _COLUMNS[name]) for name in tokens):
        values = [tokens[name][key] for key in ("min", "median", "mean", "p95", "max")]
        lines.append(f"{title:<24}" + "".join(f"{value:>8.0f}" for value in values) + f"{tokens[name]['sum']:>14}")
    for name in (name for name in tokens if name.startswith("total")):
        lines += ["", _COLUMNS[name], *_histogram_text(tokens[name]["histogram"])]
    return lines


def _histogram_text(histogram: dict[str, list[int]]) -> list[str]:
    edges, counts = histogram["edges"], histogram["counts"]
    most = max(counts)
    rows = zip(edges, edges[1:], counts, strict=False)
    return [f"  {low:>7} - {high - 1:<7} {'#' * round(_BAR * n / most):<{_BAR}} {n}" for low, high, n in rows]
