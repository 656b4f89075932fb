"""What a comparison leaves on the disk beside its answers: tables that other tools read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..common.tables import markdown_table
from ..profiling.timing import Timing
from .cost import Cost
from .scoring import ALL, Entry, Pair, Row

# table.md: the same figures for a person.

_CLEAR = 0.05


def markdown(entries: Sequence[Entry], costs: Sequence[Cost]) -> str:
    parts = ["# Comparison", *_quality(entries)]
    if costs:
        parts += ["", "## Cost", "", *_cost(costs)]
    return "\n".join(parts) + "\n"


def quality_table(entries: Sequence[Entry], name: str) -> str:
    """Of one set: a row a cell, a column a metric."""
    mine = [entry for entry in entries if entry.set == name and entry.kind == ALL]
    metrics = list(dict.fromkeys(entry.metric for entry in mine))
    head = ["checkpoint", "method", "budget", "tokens kept", "n", *metrics, "from full"]
    rows = []
    for row in dict.fromkeys(entry.row for entry in mine):
        of_row = {entry.metric: entry for entry in mine if entry.row == row}
        first = next(iter(of_row.values()))
        kept = "" if first.kept is None else f"{100 * first.kept:.1f}%"
        cells = [_figure(of_row.get(metric)) for metric in metrics]
        rows.append([*row, kept, str(first.figure.n), *cells, _apart(first)])
    return markdown_table(head, rows)


def _quality(entries: Sequence[Entry]) -> Iterable[str]:
    yield "\nPercent, with 95% intervals. *From full*: against full tokens of the same checkpoint, in points,"
    yield "with the p of a paired test; bold where it is below 0.05."
    for name in dict.fromkeys(entry.set for entry in entries):
        yield f"\n## {name}\n"
        yield quality_table(entries, name)
        yield from _kinds(entries, name)


def _kinds(entries: Sequence[Entry], name: str) -> Iterable[str]:
    mine = [entry for entry in entries if entry.set == name and entry.kind != ALL]
    for metric in dict.fromkeys(entry.metric for entry in mine):
        here = [entry for entry in mine if entry.metric == metric]
        kinds = list(dict.fromkeys(entry.kind for entry in here))
        numbers = {kind: max(entry.figure.n for entry in here if entry.kind == kind) for kind in kinds}
        rows = []
        for row in dict.fromkeys(entry.row for entry in here):
            values = {entry.kind: _figure(entry) for entry in here if entry.row == row}
            rows.append([*row, *(values.get(kind, "") for kind in kinds)])
        yield f"\n{metric} by kind of question (number of questions)\n"
        yield markdown_table(["checkpoint", "method", "budget", *(f"{kind} ({numbers[kind]})" for kind in kinds)], rows)


def _cost(costs: Sequence[Cost]) -> Iterable[str]:
    first = costs[0]
    yield f"Milliseconds, median (quartiles) of {first.total.repeats} rounds in which all rows took turns; "
    yield f"{first.rows} question(s) together, {first.prompt_tokens} prompt tokens, {first.visual_tokens} of them "
    yield f"visual, {first.new_tokens} tokens written. *Bound*: FLOPs of the prefill, full tokens over this row.\n"
    head = ["checkpoint", "method", "budget", "kept", "prefill", "first token", "per token", "total", "prefill faster",
            "bound", "total faster", "peak MiB", "KV MiB", "GFLOPs"]  # fmt: skip
    yield markdown_table(head, [_cost_row(cost) for cost in costs])


def _cost_row(cost: Cost) -> list[str]:
    times = [_milliseconds(each) for each in (cost.prefill, cost.first_token, cost.decode, cost.total)]
    faster = [f"{each.median:.2f}x" for each in (cost.faster_prefill, cost.faster_total)]
    sizes = [f"{cost.peak_bytes / 2**20:.1f}", f"{cost.kv_bytes / 2**20:.2f}", f"{cost.flops / 1e9:.3g}"]
    place = [cost.checkpoint, cost.method, cost.budget, str(cost.kept)]
    return [*place, *times, faster[0], f"{cost.bound:.2f}x", faster[1], *sizes]


def _milliseconds(time: Timing) -> str:
    return f"{1e3 * time.median:.2f} ({1e3 * time.low:.2f}-{1e3 * time.high:.2f})"


def _figure(entry: Entry | None) -> str:
    if entry is None:
        return ""
    value, low, high = (100 * each for each in (entry.figure.value, entry.figure.low, entry.figure.high))
    return f"{value:.1f} ({low:.1f}-{high:.1f})"


def _apart(entry: Entry) -> str:
    if entry.from_full is None:
        return ""
    text = f"{100 * entry.from_full.value:+.1f} (p {p_words(entry.from_full.p)})"
    return f"**{text}**" if entry.from_full.p < _CLEAR else text


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


TABLE, PAIRS, COST = "table.csv", "pairs.csv", "cost.csv"
COSTS = "cost.json"  # every repeat's summary, as it is read back


def table_rows(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One a figure. `from_full` and what follows it: this row less full tokens of the same checkpoint."""
    return [
        {
            **_named(entry.row),
            "set": entry.set,
            "kind": entry.kind,
            "metric": entry.metric,
            "n": entry.figure.n,
            "value": _short(entry.figure.value),
            "low": _short(entry.figure.low),
            "high": _short(entry.figure.high),
            "kept_share": _short(entry.kept),
            "from_full": _short(entry.from_full.value) if entry.from_full else "",
            "from_full_low": _short(entry.from_full.low) if entry.from_full else "",
            "from_full_high": _short(entry.from_full.high) if entry.from_full else "",
            "p": _short(entry.from_full.p) if entry.from_full else "",
            "test": entry.from_full.test if entry.from_full else "",
        }
        for entry in entries
    ]


def pair_rows(pairs: Iterable[Pair]) -> list[dict[str, Any]]:
    return [
        {
            **{f"first_{name}": value for name, value in _named(pair.first).items()},
            **{f"second_{name}": value for name, value in _named(pair.second).items()},
            "set": pair.set,
            "kind": pair.kind,
            "metric": pair.metric,
            "n": pair.difference.n,
            "difference": _short(pair.difference.value),
            "low": _short(pair.difference.low),
            "high": _short(pair.difference.high),
            "gained": pair.difference.gained,
            "lost": pair.difference.lost,
            "p": _short(pair.difference.p),
            "p_holm": _short(pair.p_holm),
            "test": pair.difference.test,
        }
        for pair in pairs
    ]


def cost_rows(costs: Iterable[Cost]) -> list[dict[str, Any]]:
    """Seconds as median, first and third quartile."""
    rows = []
    for cost in costs:
        row: dict[str, Any] = {}
        for field in fields(cost):
            value = getattr(cost, field.name)
            if isinstance(value, Timing):
                row[field.name] = _short(value.median)
                row[f"{field.name}_q1"], row[f"{field.name}_q3"] = _short(value.low), _short(value.high)
            else:
                row[field.name] = _short(value) if isinstance(value, float) else value
        rows.append({**row, "repeats": cost.total.repeats})
    return rows


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as content:
        if rows:
            writer = csv.DictWriter(content, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def write_costs(file: Path, costs: Mapping[str, tuple[str, list[Cost]]]) -> None:
    """Of each checkpoint, with the fingerprint of what was measured."""
    plain = {name: {"measured": mark, "costs": list(map(asdict, found))} for name, (mark, found) in costs.items()}
    file.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def read_costs(file: Path) -> dict[str, tuple[str, list[Cost]]]:
    """Nothing where nothing readable lies."""
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        return {name: (each["measured"], [_cost_files(one) for one in each["costs"]]) for name, each in plain.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _cost_files(plain: Mapping[str, Any]) -> Cost:
    times = {name: Timing(**value) for name, value in plain.items() if isinstance(value, dict)}
    return Cost(**{**plain, **times})


def _named(row: Row) -> dict[str, str]:
    return dict(zip(("checkpoint", "method", "budget"), row, strict=True))


def _short(value: float | None) -> float | str:
    """Six digits that count; what is not known stays empty."""
    return "" if value is None else float(f"{value:.6g}")
