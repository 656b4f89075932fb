"""The report on one row, and the summary of all reports: the content of check.json and the printed text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..reduction import count_kept_by_stage
from .issues import CODES, ERROR, RowIssue

_EXAMPLES = 5
_BINS = 12
_BAR_WIDTH = 40
_COLUMNS = {
    "total": "all tokens",
    "visual": "visual tokens",
    "visual_reduced": "visual tokens, reduced",
    "total_reduced": "all tokens, reduced",
    "chosen": "chosen answer",
    "rejected": "rejected answer",
}


@dataclass(frozen=True)
class RowReport:
    """`digest` 0: the row could not be read. `total` 0: not measured. `used`: tokens that max_length leaves. `visual`,
    `answer_starts`, `prompt_tokens_after`: for each image, as in `RowLength`. `answers`: of a pair, the tokens of the
    chosen and of the rejected answer; `total` is then that of the longer conversation."""

    id: str
    issues: list[RowIssue]
    digest: int = 0
    total: int = 0
    used: int = 0
    visual: list[int] = field(default_factory=list)
    answer_starts: list[int] = field(default_factory=list)
    prompt_tokens_after: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    @property
    def fault(self) -> RowIssue | None:
        """Why the row is dropped; None: it is not."""
        return next((issue for issue in self.issues if issue.severity == ERROR or issue.code == "too_long"), None)

    @property
    def dropped(self) -> bool:
        return self.fault is not None

    def kept(self, stages: Sequence[Any]) -> int:
        """Visual tokens after the last reduction."""
        if not stages:
            return sum(self.visual)
        return count_kept_by_stage(stages, self.visual, self.answer_starts, self.prompt_tokens_after)[-1]

    def cost(self, stages: Sequence[Any]) -> int:
        """Tokens of the row after max_length and after the reduction; 0 if it is dropped."""
        return self.used - sum(self.visual) + self.kept(stages) if self.used else 0

    def mean_length(self, stages: Sequence[Any], layers: int) -> float:
        """Tokens of the row after max_length, as the mean over the decoder's layers; 0 if it is dropped. stages: those
        of the reduction, each with the layer that it is made at."""
        if not self.used:
            return 0.0
        kept = count_kept_by_stage(stages, self.visual, self.answer_starts, self.prompt_tokens_after)
        starts = [*(min(stage.layer, layers) for stage in stages), layers]
        runs = zip([0, *starts[:-1]], starts, [sum(self.visual), *kept], strict=True)
        return self.used - sum(self.visual) + sum((stop - start) * visual for start, stop, visual in runs) / layers


@dataclass
class DroppedRows:
    """How many of the rows are dropped, by the code of the fault. sampled: the rows are a random sample of all."""

    sampled: bool = False
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: str = ""

    def add(self, row_id: str, fault: RowIssue | None) -> None:
        self.rows += 1
        if fault is not None:
            self.counts[fault.code] = self.counts.get(fault.code, 0) + 1
            self.first = self.first or f"{row_id}: {fault.code}: {fault.message or CODES[fault.code][1]}"

    def check(self, limit: float, place: str = "data.train") -> None:
        """Raises ValueError if more than `limit` of the rows are dropped; of a sample, only if chance does not explain
        it: by more than three standard deviations. place: the recipe's key."""
        dropped = sum(self.counts.values())
        deviation = math.sqrt(self.rows * limit * (1 - limit)) if self.sampled else 0.0
        if not dropped or dropped <= self.rows * limit + 3 * deviation:
            return
        raise ValueError(
            f"{place}: {dropped} of {self.rows} {'sampled ' if self.sampled else ''}rows cannot be used "
            f"({', '.join(f'{code}: {count}' for code, count in self.counts.items())}), more than "
            f"data.max_bad_fraction {limit:g}; the first one is {self.first}. Correct the rows"
            f"{', raise data.max_length' if 'too_long' in self.counts else ''}, or raise data.max_bad_fraction. To see "
            "every fault: python -m dart_train data check RECIPE"
        )


@dataclass
class CheckSummary:
    """Grows by a few numbers for each row."""

    reducers: Sequence[Any] = ()
    max_bad_fraction: float | None = None
    rows: int = 0
    dropped: int = 0
    with_images: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    columns: dict[str, array[int]] = field(default_factory=lambda: {name: array("q") for name in _COLUMNS})

    def add(self, report: RowReport) -> None:
        self.rows += 1
        self.dropped += report.dropped
        for issue in report.issues:
            self.note(report.id, issue)
        if report.total:
            visual, kept = sum(report.visual), report.kept(self.reducers)
            self.with_images += visual > 0
            values = (report.total, visual, kept, report.total - visual + kept)
            for name, value in zip(_COLUMNS, values if self.reducers else values[:2], strict=False):
                self.columns[name].append(value)
        if report.answers:
            for name, value in zip(("chosen", "rejected"), report.answers, strict=True):
                self.columns[name].append(value)

    def note(self, row_id: str, issue: RowIssue) -> None:
        self.counts[issue.code] = self.counts.get(issue.code, 0) + 1
        examples = self.examples.setdefault(issue.code, [])
        if len(examples) < _EXAMPLES:
            examples.append({"id": row_id, "message": issue.message})

    @property
    def errors(self) -> int:
        return sum(count for code, count in self.counts.items() if CODES[code][0] == ERROR)

    def to_dict(self) -> dict[str, Any]:
        limit = self.max_bad_fraction
        return {
            "version": 1,
            "rows": self.rows,
            "usable": self.rows - self.dropped,
            "dropped": self.dropped,
            "errors": self.errors,
            "max_bad_fraction": limit,
            "too_many_dropped": limit is not None and self.dropped > limit * self.rows,
            "findings": {code: self._issue(code) for code in CODES if code in self.counts},
            "with_images": self.with_images,
            "tokens": {name: _statistics(values) for name, values in self.columns.items() if values},
            **self._pairs(),
        }

    def _pairs(self) -> dict[str, Any]:
        """Of rows with two answers: where the chosen one is longer, which a model may learn in place of what is better
        about it."""
        both = list(zip(self.columns["chosen"], self.columns["rejected"], strict=True))
        longer, equal = sum(a > b for a, b in both), sum(a == b for a, b in both)
        return {"pairs": {"measured": len(both), "chosen_longer": longer, "as_long": equal}} if both else {}

    def _issue(self, code: str) -> dict[str, Any]:
        severity, meaning = CODES[code]
        return {"severity": severity, "count": self.counts[code], "meaning": meaning, "examples": self.examples[code]}


def _statistics(values: array[int]) -> dict[str, Any]:
    numbers = np.frombuffer(values, dtype=np.int64)
    counts, edges = np.histogram(numbers, bins=_edges(int(numbers.min()), int(numbers.max())))
    percentiles = dict(zip(("median", "p95", "p99"), np.percentile(numbers, (50, 95, 99)).tolist(), strict=True))
    return {
        "sum": int(numbers.sum()),
        "mean": float(numbers.mean()),
        "min": int(numbers.min()),
        **percentiles,
        "max": int(numbers.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _edges(low: int, high: int) -> np.ndarray:
    """Bins of equal integer width that contain all of low ... high."""
    width = max(1, -(-(high - low + 1) // _BINS))
    return low + width * np.arange(-(-(high - low + 1) // width) + 1)


def as_text(summary: dict[str, Any]) -> str:
    """The summary (`CheckSummary.to_dict`) as text for a terminal."""
    lines = [f"{summary['rows']} rows: {summary['usable']} usable, {summary['dropped']} dropped"]
    if summary["tokens"]:
        lines[0] += f"; {summary['with_images']} have images or videos"
    if summary["too_many_dropped"]:
        share, limit = summary["dropped"] / summary["rows"], summary["max_bad_fraction"]
        lines.append(
            f"{share:.1%} of the rows are dropped, more than data.max_bad_fraction {limit:.1%}: training would stop. "
            "Correct the rows, raise data.max_length if they are too long, or raise data.max_bad_fraction"
        )
    for severity, title in ((ERROR, "errors: these rows are dropped"), ("warning", "warnings")):
        found = {code: item for code, item in summary["findings"].items() if item["severity"] == severity}
        lines += ["", title] if found else []
        for code, item in found.items():
            first = item["examples"][0]
            lines.append(f"  {item['count']:>8}  {code}: {item['meaning']}")
            lines.append(f"            first: {first['id']}" + (f": {first['message']}" if first["message"] else ""))
    more = [*_pairs_text(summary.get("pairs")), *_repeated_text(summary.get("repeated_units"))]
    return "\n".join([*lines, *_tokens_text(summary["tokens"]), *more])


def _pairs_text(pairs: dict[str, int] | None) -> list[str]:
    if not pairs:
        return []
    longer, equal = (pairs[name] / pairs["measured"] for name in ("chosen_longer", "as_long"))
    return [
        "",
        f"pairs: the chosen answer is longer in {longer:.1%} of them, as long in {equal:.1%}; all tokens are those of "
        "the longer conversation",
    ]


def _repeated_text(repeated: dict[str, Any] | None) -> list[str]:
    if not repeated:
        return []
    return [
        "",
        f"vision tower: {repeated['dropped_share']:.1%} of the units repeat the pixels of another one and are dropped "
        f"(tolerance {repeated['tolerance']:g}; {repeated['units']:,} units of {repeated['images']} images)",
    ]


def _tokens_text(tokens: dict[str, Any]) -> list[str]:
    if not tokens:
        return ["", "token lengths: not measured (no row could be measured, or no model was given: --model FOLDER)"]
    lines = ["", f"{'tokens per row':<24}{'min':>8}{'median':>8}{'mean':>8}{'95%':>8}{'max':>8}{'sum':>14}"]
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
    return [
        f"  {low:>7} - {high - 1:<7} {'#' * round(_BAR_WIDTH * n / most):<{_BAR_WIDTH}} {n}" for low, high, n in rows
    ]
