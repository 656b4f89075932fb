"""The tables of a comparison: CSV for programs, Markdown for people, and cost.json, which is read back on resume."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..common.tables import markdown_table
from ..profiling.timing import Timing
from .cost import CellCost
from .scoring import ALL_KINDS, CellKey, PairedTest, ScoreRow

TABLE, PAIRS, COST = "table.csv", "pairs.csv", "cost.csv"
COSTS = "cost.json"  # every timing's summary, with the fingerprint of what was measured


# CSV


def score_records(rows: Iterable[ScoreRow]) -> list[dict[str, Any]]:
    """table.csv. from_full and the columns after it: this cell minus full tokens of the same checkpoint."""
    return [
        {
            **_named(row.cell),
            "set": row.set,
            "kind": row.kind,
            "metric": row.metric,
            "n": row.score.n,
            "value": _rounded(row.score.value),
            "low": _rounded(row.score.low),
            "high": _rounded(row.score.high),
            "kept_share": _rounded(row.kept),
            "from_full": _rounded(row.from_full.value) if row.from_full else "",
            "from_full_low": _rounded(row.from_full.low) if row.from_full else "",
            "from_full_high": _rounded(row.from_full.high) if row.from_full else "",
            "p": _rounded(row.from_full.p) if row.from_full else "",
            "test": row.from_full.test if row.from_full else "",
        }
        for row in rows
    ]


def pair_records(pairs: Iterable[PairedTest]) -> list[dict[str, Any]]:
    """pairs.csv: the second cell minus the first."""
    return [
        {
            **{f"first_{name}": value for name, value in _named(pair.first).items()},
            **{f"second_{name}": value for name, value in _named(pair.second).items()},
            "set": pair.set,
            "kind": pair.kind,
            "metric": pair.metric,
            "n": pair.difference.n,
            "difference": _rounded(pair.difference.value),
            "low": _rounded(pair.difference.low),
            "high": _rounded(pair.difference.high),
            "gained": pair.difference.gained,
            "lost": pair.difference.lost,
            "p": _rounded(pair.difference.p),
            "p_holm": _rounded(pair.p_holm),
            "test": pair.difference.test,
        }
        for pair in pairs
    ]


def cost_records(costs: Iterable[CellCost]) -> list[dict[str, Any]]:
    """cost.csv: seconds as median, first and third quartile."""
    records = []
    for cost in costs:
        record: dict[str, Any] = {}
        for field in fields(cost):
            value = getattr(cost, field.name)
            if isinstance(value, Timing):
                record[field.name] = _rounded(value.median)
                record[f"{field.name}_q1"], record[f"{field.name}_q3"] = _rounded(value.low), _rounded(value.high)
            else:
                record[field.name] = _rounded(value) if isinstance(value, float) else value
        records.append({**record, "repeats": cost.total.repeats})
    return records


def write_csv(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        if records:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)


def _named(cell: CellKey) -> dict[str, str]:
    return dict(zip(("checkpoint", "method", "budget"), cell, strict=True))


def _rounded(value: float | None) -> float | str:
    """Six significant digits; empty where there is no value."""
    return "" if value is None else float(f"{value:.6g}")


# cost.json

MeasuredCosts = dict[str, tuple[str, list[CellCost]]]  # checkpoint -> fingerprint, costs of its cells


def write_costs(file: Path, costs: MeasuredCosts) -> None:
    plain = {name: {"measured": mark, "costs": list(map(asdict, found))} for name, (mark, found) in costs.items()}
    file.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def read_costs(file: Path) -> MeasuredCosts:
    """Empty for a file that is missing or damaged: the costs are then measured again."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        return {name: (each["measured"], list(map(_read_cost, each["costs"]))) for name, each in plain.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _read_cost(plain: Mapping[str, Any]) -> CellCost:
    timings = {name: Timing(**value) for name, value in plain.items() if isinstance(value, dict)}
    return CellCost(**{**plain, **timings})


# Markdown


def markdown(rows: Sequence[ScoreRow], costs: Sequence[CellCost]) -> str:
    """table.md."""
    parts = ["# Comparison", *_quality_sections(rows)]
    if costs:
        parts += ["", "## Cost", "", *_cost_section(costs)]
    return "\n".join(parts) + "\n"


def quality_table(rows: Sequence[ScoreRow], name: str) -> str:
    """All questions of one set: a row for each cell, a column for each metric."""
    of_set = [row for row in rows if row.set == name and row.kind == ALL_KINDS]
    metrics = list(dict.fromkeys(row.metric for row in of_set))
    header = ["checkpoint", "method", "budget", "tokens kept", "n", *metrics, "from full"]
    lines = []
    for cell in dict.fromkeys(row.cell for row in of_set):
        of_cell = {row.metric: row for row in of_set if row.cell == cell}
        first = next(iter(of_cell.values()))
        kept = "" if first.kept is None else f"{100 * first.kept:.1f}%"
        scores = [_score(of_cell.get(metric)) for metric in metrics]
        lines.append([*cell, kept, str(first.score.n), *scores, _from_full(first)])
    return markdown_table(header, lines)


def _quality_sections(rows: Sequence[ScoreRow]) -> Iterator[str]:
    yield "\nPercent, with 95% intervals. *From full*: the difference to full tokens of the same checkpoint, points,"
    yield "with the p of a paired test; bold if p is below 0.05."
    for name in dict.fromkeys(row.set for row in rows):
        yield f"\n## {name}\n"
        yield quality_table(rows, name)
        yield from _kind_sections(rows, name)


def _kind_sections(rows: Sequence[ScoreRow], name: str) -> Iterator[str]:
    of_set = [row for row in rows if row.set == name and row.kind != ALL_KINDS]
    for metric in dict.fromkeys(row.metric for row in of_set):
        of_metric = [row for row in of_set if row.metric == metric]
        kinds = list(dict.fromkeys(row.kind for row in of_metric))
        counts = {kind: max(row.score.n for row in of_metric if row.kind == kind) for kind in kinds}
        lines = []
        for cell in dict.fromkeys(row.cell for row in of_metric):
            scores = {row.kind: _score(row) for row in of_metric if row.cell == cell}
            lines.append([*cell, *(scores.get(kind, "") for kind in kinds)])
        yield f"\n{metric} by kind of question (number of questions)\n"
        yield markdown_table(["checkpoint", "method", "budget", *(f"{kind} ({counts[kind]})" for kind in kinds)], lines)


def _cost_section(costs: Sequence[CellCost]) -> Iterator[str]:
    first = costs[0]
    yield f"Milliseconds, median (quartiles) of {first.total.repeats} interleaved rounds; batch of {first.rows}, "
    yield f"{first.prompt_tokens} prompt tokens, {first.visual_tokens} of them visual, {first.new_tokens} new tokens. "
    yield "*Bound*: FLOPs of the prefill with full tokens, divided by those of the row.\n"
    header = ["checkpoint", "method", "budget", "kept", "prefill", "first token", "per token", "total",
              "prefill speed-up", "bound", "total speed-up", "peak MiB", "KV MiB", "GFLOPs"]  # fmt: skip
    yield markdown_table(header, [_cost_line(cost) for cost in costs])


def _cost_line(cost: CellCost) -> list[str]:
    times = [_milliseconds(each) for each in (cost.prefill, cost.first_token, cost.decode, cost.total)]
    speed_ups = [f"{cost.faster_prefill.median:.2f}x", f"{cost.bound:.2f}x", f"{cost.faster_total.median:.2f}x"]
    sizes = [f"{cost.peak_bytes / 2**20:.1f}", f"{cost.kv_bytes / 2**20:.2f}", f"{cost.flops / 1e9:.3g}"]
    return [*cost.cell, str(cost.kept), *times, *speed_ups, *sizes]


def _milliseconds(time: Timing) -> str:
    return f"{1e3 * time.median:.2f} ({1e3 * time.low:.2f}-{1e3 * time.high:.2f})"


def _score(row: ScoreRow | None) -> str:
    if row is None:
        return ""
    value, low, high = (100 * each for each in (row.score.value, row.score.low, row.score.high))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def _from_full(row: ScoreRow) -> str:
    if row.from_full is None:
        return ""
    text = f"{100 * row.from_full.value:+.1f} (p {format_p(row.from_full.p)})"
    return f"**{text}**" if row.from_full.significant else text


def format_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
