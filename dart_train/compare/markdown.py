"""table.md: the same figures for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..bench.timing import Timing
from .table import ALL, Entry
from .timing import Cost

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
    return _table(head, rows)


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
        yield _table(["checkpoint", "method", "budget", *(f"{kind} ({numbers[kind]})" for kind in kinds)], rows)


def _cost(costs: Sequence[Cost]) -> Iterable[str]:
    first = costs[0]
    yield f"Milliseconds, median (quartiles) of {first.total.repeats} rounds in which all rows took turns; "
    yield f"{first.rows} question(s) together, {first.prompt_tokens} prompt tokens, {first.visual_tokens} of them "
    yield f"visual, {first.new_tokens} tokens written. *Bound*: FLOPs of the prefill, full tokens over this row.\n"
    head = ["checkpoint", "method", "budget", "kept", "prefill", "first token", "per token", "total", "prefill faster",
            "bound", "total faster", "peak MiB", "KV MiB", "GFLOPs"]  # fmt: skip
    yield _table(head, [_cost_row(cost) for cost in costs])


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
