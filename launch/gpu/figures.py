"""What the page shows of a stage, read from the files that the stage wrote."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Row = dict[str, Any]


def file_figures(folder: Path) -> list[str]:
    """Of a stage that writes its own: one a line."""
    return (folder / "figures.txt").read_text(encoding="utf-8").splitlines()


def laws_figures(folder: Path) -> list[str]:
    """How many passed; and each reason for a skip once."""
    cases = list(ElementTree.parse(folder / "results.xml").getroot().iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    lines = [f"{len(cases) - len(bad) - len(skips)} tests passed, {len(bad)} failed, {len(skips)} skipped"]
    lines += [f"failed: {case.get('name')}" for case in bad[:10]]
    reasons = Counter(skip.get("message", "") for skip in skips)
    return lines + [f"skipped: {reason} ({number} tests)" for reason, number in reasons.items()]


def bench_rows(folder: Path) -> list[tuple[str, Row]]:
    """(table, row) of all tables."""
    tables = json.loads((folder / "bench.json").read_text(encoding="utf-8"))["tables"]
    return [(title, row) for title, table in tables.items() for row in table["rows"]]


def bench_figures(folder: Path) -> list[str]:
    """One line a row, those of DART and of teachers first."""
    lines = [_row_line(row) for _, row in bench_rows(folder)]
    return sorted(lines, key=lambda line: "DART" not in line and "teacher" not in line)  # stable


def _row_line(row: Row) -> str:
    what = ", ".join(str(row[key]) for key in ("model", "trained", "teacher", "way") if row.get(key))
    parts = [f"{row['visual tokens']} visual tokens"] if "visual tokens" in row else []
    ratio = row.get("faster") or row.get("cost")
    if ratio:
        word = "faster than full tokens" if "faster" in row else "of the student's step"
        parts.append(f"{ratio['median']:.3g}x {word} [{ratio['low']:.3g}, {ratio['high']:.3g}]")
    if ratio and row.get("bound"):
        parts.append(f"bound {row['bound']:.3g}x")
    if "seconds" in row:
        parts.append(f"{1e3 * row['seconds']['median']:.4g} ms ({row['seconds']['repeats']} repeats)")
    if "memory" in row:
        parts.append(f"peak memory {row['memory']:.1%} of full")
    if "share" in row:
        parts.append(f"cache {row['share']:.1%} of full")
    if "failed" in row:
        parts.append(f"failed: {row['failed']}")
    return f"{what}: " + ", ".join(parts)


def select_figures(folder: Path) -> list[str]:
    """DART's share of a decoder layer, in PyTorch and fused."""
    lines = []
    for _, row in bench_rows(folder):
        if "dart" not in row["method"].lower():
            continue
        syncs = row["host synchronisations"]
        lines.append(
            f"{row['method'].split(':')[-1]}, {row['tokens']} tokens, width {row['width']}: "
            f"{1e3 * row['seconds']['median']:.3g} ms, "
            f"{row['share of a layer']:.1%} of one decoder layer, {row['times faster than set-and-loop']:.3g}x faster "
            f"than set-and-loop code, host synchronisations: {'not measured' if syncs is None else syncs}"
        )
    return lines
