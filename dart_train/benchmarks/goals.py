"""What was set out to be reached, beside what this very run measured of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .options import scale_of
from .table import NOT_MEASURED, Row, Table, percent, times

KEEP_ALL, OURS, SHARED = "keep-all attached", "DART", "teacher in the same forward"
Tables = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Goal:
    """of(tables): the numbers that speak of it, each with what it is of; where: the kind of device it is set for."""

    what: str
    goal: str
    met: Callable[[float], bool]
    of: Callable[[Tables], Iterator[tuple[str, float]]]
    write: Callable[[float], str]
    where: str = "any"


def table_of(tables: Sequence[Table], options: argparse.Namespace) -> Table:
    rows = {table.title: table.rows for table in tables}
    here = {"any", "full-size GPU" if options.device.type == "cuda" and scale_of(options) >= 1 else options.device.type}
    found = [row for goal in GOALS for row in _judged(goal, rows if goal.where in here else {})]
    return Table("Goals", {name: _cell(name) for name in ("goal", "set", "of", "measured", "reached")}, found, NOTES)


def _judged(goal: Goal, tables: Tables) -> list[dict[str, Any]]:
    named = {"goal": goal.what, "set": goal.goal}
    found = list(goal.of(tables))
    if not found:
        return [{**named, "of": goal.where if goal.where != "any" else "", "measured": NOT_MEASURED, "reached": ""}]
    return [
        {
            **named,
            "of": of,
            "measured": goal.write(value),
            "value": value,
            "reached": "yes" if goal.met(value) else "no",
        }
        for of, value in found
    ]


def _cell(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def _rows(tables: Tables, titles: Sequence[str], way: str, key: str, **wanted: str) -> Iterator[tuple[str, Row]]:
    for title in titles:
        for row in tables.get(title, ()):
            if row["way"] == way and row.get(key) is not None and all(row[k] == v for k, v in wanted.items()):
                yield (
                    ", ".join([title.lower(), row["model"], *(row[k] for k in ("trained", "teacher") if k in row)]),
                    row,
                )


def _overhead(tables: Tables) -> Iterator[tuple[str, float]]:
    for of, row in _rows(tables, ("Training step", "Prefill"), KEEP_ALL, "faster"):
        yield of, 1 / row["faster"].median


def _bound(title: str, *models: str) -> Callable[[Tables], Iterator[tuple[str, float]]]:
    def of(tables: Tables) -> Iterator[tuple[str, float]]:
        for name, row in _rows(tables, (title,), OURS, "measured / bound"):
            if not models or row["model"] in models:
                yield name, row["measured / bound"]

    return of


def _faster(title: str, *models: str) -> Callable[[Tables], Iterator[tuple[str, float]]]:
    def of(tables: Tables) -> Iterator[tuple[str, float]]:
        for name, row in _rows(tables, (title,), OURS, "faster"):
            if not models or row["model"] in models:
                yield name, row["faster"].median

    return of


def _memory(tables: Tables) -> Iterator[tuple[str, float]]:
    for of, row in _rows(tables, ("Training step",), OURS, "memory allowed"):
        yield of, (1 - row["memory"]) / (1 - row["memory allowed"])


def _cache(tables: Tables) -> Iterator[tuple[str, float]]:
    for of, row in _rows(tables, ("Decode",), OURS, "share"):
        yield of, row["share"] / row["true share"]


def _teaching(tables: Tables) -> Iterator[tuple[str, float]]:
    for of, row in _rows(tables, ("Distillation",), SHARED, "cost"):
        yield of, row["cost"].median


_LLAVA, _NEXT, _GPU = "LLaVA-1.5-7B", "LLaVA-NeXT-7B", "full-size GPU"
GOALS = (
    Goal("keep-all attached, time against the plain model", "<= 1.01x", lambda x: x <= 1.01, _overhead, times),
    Goal("prefill, 2928 -> 320", ">= 3.3x", lambda x: x >= 3.3, _faster("Prefill", _NEXT), times, _GPU),
    Goal("prefill, 2928 -> 320", ">= 95% of the bound", lambda x: x >= 0.95, _bound("Prefill", _NEXT), percent, _GPU),
    Goal("training step, 576 -> 64", ">= 2.2x", lambda x: x >= 2.2, _faster("Training step", _LLAVA), times, _GPU),
    Goal("training step", ">= 90% of the bound", lambda x: x >= 0.9, _bound("Training step", _LLAVA), percent, _GPU),
    Goal("training step", ">= 90% of the bound", lambda x: x >= 0.9, _bound("Training step"), percent, "cpu"),
    Goal("training step, peak memory saved, of what activations allow", ">= 90%", lambda x: x >= 0.9, _memory, percent),
    Goal("decode, speed against full tokens", "no slower", lambda x: x >= 0.98, _faster("Decode"), times),
    Goal("decode, bytes of the cache against the true share", "equal", lambda x: abs(x - 1) < 1e-3, _cache, percent),
    Goal("a step with a teacher, against the student's", "<= 1.5x", lambda x: x <= 1.5, _teaching, times),
)
NOTES = ("No slower: at least 0.98x, as medians of so many repeats cannot tell less apart.",)
