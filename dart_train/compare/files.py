"""What a comparison leaves on the disk beside its answers: tables that other tools read."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ..bench.timing import Timing
from .table import Entry, Pair, Row
from .timing import Cost

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
        return {name: (each["measured"], [_cost(one) for one in each["costs"]]) for name, each in plain.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _cost(plain: Mapping[str, Any]) -> Cost:
    times = {name: Timing(**value) for name, value in plain.items() if isinstance(value, dict)}
    return Cost(**{**plain, **times})


def _named(row: Row) -> dict[str, str]:
    return dict(zip(("checkpoint", "method", "budget"), row, strict=True))


def _short(value: float | None) -> float | str:
    """Six digits that count; what is not known stays empty."""
    return "" if value is None else float(f"{value:.6g}")
