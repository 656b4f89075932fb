"""The tables of the report."""

from __future__ import annotations

from collections.abc import Sequence

from ...common.metrics import METRICS
from ...common.statistics import Estimate, PairedDifference
from ...profiling.timing import Timing
from ..comparison_grid import FULL
from ..cost import CellCost
from ..scoring import ALL_KINDS, CellKey, PairedTest, ScoreRow
from ..tables import format_p
from .html import Cell, TableRow, number, picks, table, words

CLEAR = 0.05
_NONE = Cell('<span class="dim">-</span>', None, True)


def quality(entries: Sequence[ScoreRow]) -> str:
    """All questions of a set: one row a cell and metric."""
    mine = [entry for entry in entries if entry.kind == ALL_KINDS]
    head = ["checkpoint", "method", "budget", "kept %", "value", "95%", "n", "from full", "95%", "p"]
    rows = [
        TableRow(
            [
                *_place(entry.cell),
                _NONE if entry.kept is None else number(100 * entry.kept, f"{100 * entry.kept:.1f}"),
                Cell(_bar(entry.score), 100 * entry.score.value, True),
                Cell(f'<span class="dim">{_span(entry.score.low, entry.score.high)}</span>'),
                number(entry.score.n, str(entry.score.n)),
                *apart_cells(entry.from_full),
            ],
            {"set": entry.set, "metric": entry.metric, "checkpoint": entry.cell[0]},
            _kind(entry.cell),
        )
        for entry in mine
    ]
    return _picked("quality", mine, True) + table("quality", head, rows)


def kinds(entries: Sequence[ScoreRow]) -> str:
    """By kind of question, coloured by how far it is from full tokens; empty where rows have no kinds."""
    mine = [entry for entry in entries if entry.kind != ALL_KINDS]
    names = list(dict.fromkeys(entry.kind for entry in mine))
    if not names:
        return ""
    places = list(dict.fromkeys((entry.set, entry.metric, entry.cell) for entry in mine))
    found = {(entry.set, entry.metric, entry.cell, entry.kind): entry for entry in mine}
    rows = [
        TableRow(
            [*_place(row), *(_shaded(found.get((name, metric, row, kind))) for kind in names)],
            {"set": name, "metric": metric, "checkpoint": row[0]},
            _kind(row),
        )
        for name, metric, row in places
    ]
    head = ["checkpoint", "method", "budget", *names]
    return _picked("kinds", mine, True) + table("kinds", head, rows)


def costs(found: Sequence[CellCost]) -> str:
    head = ["checkpoint", "method", "budget", "kept", "prefill ms", "first token ms", "per token ms", "total ms",
            "quartiles", "total faster", "prefill faster", "bound", "GFLOPs", "peak MiB", "KV MiB"]  # fmt: skip
    rows = [
        TableRow(
            [
                *_place((cost.checkpoint, cost.method, cost.budget)),
                number(cost.kept, str(cost.kept)),
                *(_milliseconds(each) for each in (cost.prefill, cost.first_token, cost.decode, cost.total)),
                Cell(f'<span class="dim">{1e3 * cost.total.low:.2f}-{1e3 * cost.total.high:.2f}</span>'),
                _times(cost.faster_total),
                _times(cost.faster_prefill),
                number(cost.bound, f"{cost.bound:.2f}x"),
                number(cost.flops, f"{cost.flops / 1e9:.3g}"),
                number(cost.peak_bytes, f"{cost.peak_bytes / 2**20:.1f}"),
                number(cost.kv_bytes, f"{cost.kv_bytes / 2**20:.2f}"),
            ],
            {"checkpoint": cost.checkpoint},
            "full" if cost.method == FULL else "",
        )
        for cost in found
    ]
    checkpoints = list(dict.fromkeys(cost.checkpoint for cost in found))
    return picks("cost", {"checkpoint": ("checkpoint", checkpoints, True)}) + table("cost", head, rows)


def pairs(found: Sequence[PairedTest], name: str) -> str:
    """second less first."""
    head = ["first", "second", "where", "set", "metric", "kind", "difference", "95%", "n", "gained", "lost", "p",
            "p, Holm"]  # fmt: skip
    rows = [
        TableRow(
            [
                *_sides(pair),
                words(pair.set),
                words(pair.metric),
                words(pair.kind),
                *apart_cells(pair.difference)[:2],
                number(pair.difference.n, str(pair.difference.n)),
                number(pair.difference.gained, str(pair.difference.gained)),
                number(pair.difference.lost, str(pair.difference.lost)),
                _p(pair.difference.p),
                _p(pair.p_holm),
            ],
            {"set": pair.set, "metric": pair.metric, "kind": pair.kind},
        )
        for pair in found
    ]
    kinds_ = sorted({pair.kind for pair in found}, key=lambda kind: (kind != ALL_KINDS, kind))
    chosen = {
        "set": ("set", list(dict.fromkeys(pair.set for pair in found)), False),
        "metric": ("metric", list(dict.fromkeys(pair.metric for pair in found)), False),
        "kind": ("kind", kinds_, False),
    }
    return picks(name, chosen) + table(name, head, rows)


def _sides(pair: PairedTest) -> list[Cell]:
    """What is held against what, and what both have in common."""
    (one, method, budget), (other, method_too, _) = pair.first, pair.second
    if method == method_too:
        return [words(one), words(other), words(method if budget == FULL else f"{method}, {budget_text(budget)}")]
    return [words(method), words(method_too), words(f"{one}, {budget_text(budget)}")]


def _picked(name: str, entries: Sequence[ScoreRow], every: bool) -> str:
    return picks(
        name,
        {
            "set": ("set", list(dict.fromkeys(entry.set for entry in entries)), False),
            "metric": ("metric", list(dict.fromkeys(entry.metric for entry in entries)), False),
            "checkpoint": ("checkpoint", list(dict.fromkeys(entry.cell[0] for entry in entries)), every),
        },
    )


def _place(row: CellKey) -> list[Cell]:
    return [words(row[0]), words(row[1] if row[1] != FULL else "full tokens"), budget_cell(row[2])]


def budget_cell(budget: str) -> Cell:
    """Shares before numbers of tokens when sorted."""
    if budget == FULL:
        return number(1.0, "")
    return number(float(budget), budget_text(budget))


def budget_text(budget: str) -> str:
    value = float(budget)
    return f"{100 * value:.3g}%" if value < 1 else f"{value:.0f} tokens"


def _kind(row: CellKey) -> str:
    return "full" if row[1] == FULL else ""


def _bar(figure: Estimate) -> str:
    low, high, at = (100 * each for each in (figure.low, figure.high, figure.value))
    band = f'<i style="left:{low:.1f}%;width:{max(high - low, 0.8):.1f}%"></i><b style="left:{at:.1f}%"></b>'
    return f'<span class="bar">{band}</span>{at:.1f}'


def _span(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"


def apart_cells(found: PairedDifference | None) -> list[Cell]:
    if found is None:
        return [_NONE, Cell(""), _NONE]
    clear = found.p < CLEAR
    kind = f"{'good' if found.value > 0 else 'bad'} clear" if clear else ""
    spread = f'<span class="dim">{100 * found.low:+.1f} to {100 * found.high:+.1f}</span>'
    return [number(100 * found.value, f"{100 * found.value:+.1f}", kind), Cell(spread), _p(found.p)]


def _p(p: float) -> Cell:
    return number(p, format_p(p), "clear" if p < CLEAR else "dim")


def _shaded(entry: ScoreRow | None) -> Cell:
    """Up to 40 points from full tokens fill the colour; what chance explains stays pale."""
    if entry is None:
        return _NONE
    value, low, high, n = (entry.score.value, entry.score.low, entry.score.high, entry.score.n)
    shown, under = f"{100 * value:.1f}", f'<div class="under">{100 * low:.0f} to {100 * high:.0f}, {n}</div>'
    apart = entry.from_full
    if apart is None or apart.p >= CLEAR:
        return Cell(shown + under, value, True)
    strength = min(1.0, abs(apart.value) / 0.4) * 0.55 + 0.08
    colour = f"rgba({'47,133,90' if apart.value > 0 else '192,86,64'},{strength:.2f})"
    inner = f'<span style="background:{colour};padding:2px 6px;border-radius:4px">{shown}</span>'
    return Cell(inner + under, value, True)


def _milliseconds(time: Timing) -> Cell:
    return number(time.median, f"{1e3 * time.median:.2f}")


def _times(faster: Timing) -> Cell:
    kind = "good" if faster.low > 1 else "bad" if faster.high < 1 else ""
    return number(faster.median, f"{faster.median:.2f}x", kind)


def title_of(metric: str) -> str:
    return METRICS[metric].title
