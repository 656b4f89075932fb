"""The tables of the report as data; report.html.jinja renders them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...common.statistics import SIGNIFICANT, PairedDifference
from ...profiling.timing import Timing
from ..comparison_grid import FULL
from ..cost import CellCost
from ..scoring import ALL_KINDS, CellKey, PairedTest, ScoreRow
from ..tables import format_p

KINDS_A_TABLE = 9  # columns that fit next to the names on a desktop screen
_FULL_SHADE = 0.4  # a difference from full tokens that gets the strongest colour
_CELL_NAMES = ("checkpoint", "method", "budget")


@dataclass(frozen=True)
class ReportCell:
    """value: what a numeric column is sorted by; None sorts last. detail: a small second line. style: CSS classes.
    bar: (low, high, value) in percent. shade: CSS background."""

    text: str
    value: float | None = None
    numeric: bool = False
    detail: str = ""
    style: str = ""
    bar: tuple[float, float, float] | None = None
    shade: str = ""


@dataclass(frozen=True)
class ReportRow:
    """data: what the filters look at. reference: full tokens, which no filter of methods or budgets hides."""

    cells: Sequence[ReportCell]
    data: Mapping[str, str] = field(default_factory=dict)
    reference: bool = False
    significant: bool = False


@dataclass(frozen=True)
class ReportTable:
    id: str
    header: Sequence[str]
    rows: Sequence[ReportRow]

    def numeric(self, column: int) -> bool:
        return all(row.cells[column].numeric for row in self.rows)


@dataclass(frozen=True)
class RowFilter:
    """A select that hides rows. optional: all values may be shown together."""

    name: str
    values: Sequence[str]
    optional: bool = True


@dataclass(frozen=True)
class FoldedTable:
    title: str
    table: ReportTable


MISSING = ReportCell("-", None, True, style="dim")


def number(value: float | None, text: str, style: str = "", detail: str = "") -> ReportCell:
    return ReportCell(text, value, True, detail, style)


def budget_text(budget: str) -> str:
    if budget == FULL:
        return "all"
    value = float(budget)
    return f"{100 * value:.3g}%" if value < 1 else f"{value:.0f} tokens"


def cell_names(cell: CellKey) -> list[ReportCell]:
    """Checkpoint, method and budget; when sorted, ratios come before numbers of tokens."""
    checkpoint, method, budget = cell
    share = 1.0 if budget == FULL else float(budget)
    name = "full tokens" if method == FULL else method
    return [ReportCell(checkpoint), ReportCell(name), number(share, budget_text(budget))]


def difference_cells(found: PairedDifference | None) -> list[ReportCell]:
    """The difference in points with its interval, and p."""
    if found is None:
        return [MISSING, MISSING]
    style = ("good" if found.value > 0 else "bad") + " clear" if found.significant else ""
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return [number(100 * found.value, f"{100 * found.value:+.1f}", style, interval), _p_cell(found.p)]


def _p_cell(p: float) -> ReportCell:
    return number(p, format_p(p), "clear" if p < SIGNIFICANT else "dim")


def quality_table(rows: Sequence[ScoreRow]) -> ReportTable:
    """All questions of each set: a row for each cell and metric."""
    header = [*_CELL_NAMES, "kept %", "score", "n", "from full", "p"]
    lines = []
    for row in _of_all_kinds(rows):
        score = row.score
        bar = (100 * score.low, 100 * score.high, 100 * score.value)
        interval = f"{bar[0]:.1f} to {bar[1]:.1f}"
        cells = [
            *cell_names(row.cell),
            MISSING if row.kept is None else number(100 * row.kept, f"{100 * row.kept:.1f}"),
            ReportCell(f"{bar[2]:.1f}", bar[2], True, interval, bar=bar),
            number(score.n, str(score.n)),
            *difference_cells(row.from_full),
        ]
        lines.append(ReportRow(cells, {"set": row.set, "metric": row.metric, **_data(row.cell)}, row.cell[1] == FULL))
    return ReportTable("quality", header, lines)


def kind_tables(rows: Sequence[ScoreRow]) -> list[ReportTable]:
    """Scores by kind of question, coloured where a paired test finds a difference from full tokens. One table for each
    set and metric, with at most KINDS_A_TABLE kinds, so that none is cut off. Empty if the questions have no kinds."""
    of_kinds = [row for row in rows if row.kind != ALL_KINDS]
    tables: list[ReportTable] = []
    for name, metric in dict.fromkeys((row.set, row.metric) for row in of_kinds):
        here = {(row.cell, row.kind): row for row in of_kinds if (row.set, row.metric) == (name, metric)}
        all_kinds = list(dict.fromkeys(kind for _, kind in here))
        for start in range(0, len(all_kinds), KINDS_A_TABLE):
            kinds = all_kinds[start : start + KINDS_A_TABLE]
            lines = [
                ReportRow(
                    [*cell_names(cell), *(_shaded(here.get((cell, kind))) for kind in kinds)],
                    {"set": name, "metric": metric, **_data(cell)},
                    cell[1] == FULL,
                )
                for cell in dict.fromkeys(cell for cell, _ in here)
            ]
            tables.append(ReportTable(f"kinds-{len(tables) + 1}", [*_CELL_NAMES, *kinds], lines))
    return tables


def _shaded(row: ScoreRow | None) -> ReportCell:
    if row is None:
        return MISSING
    value, low, high = (100 * each for each in (row.score.value, row.score.low, row.score.high))
    shade, difference = "", row.from_full
    if difference is not None and difference.significant:
        strength = min(1.0, abs(difference.value) / _FULL_SHADE) * 0.55 + 0.08
        shade = f"rgba({'47,133,90' if difference.value > 0 else '192,86,64'},{strength:.2f})"
    return ReportCell(f"{value:.1f}", value, True, f"{low:.0f} to {high:.0f}, n {row.score.n}", shade=shade)


def cost_table(costs: Sequence[CellCost]) -> ReportTable:
    header = [*_CELL_NAMES, "kept", "prefill ms", "first token ms", "per token ms", "total ms", "total speed-up",
              "prefill speed-up", "bound", "GFLOPs", "peak MiB", "KV MiB"]  # fmt: skip
    lines = [
        ReportRow(
            [
                *cell_names(cost.cell),
                number(cost.kept, str(cost.kept)),
                *(_milliseconds(each) for each in (cost.prefill, cost.first_token, cost.decode, cost.total)),
                _speed_up(cost.faster_total),
                _speed_up(cost.faster_prefill),
                number(cost.bound, f"{cost.bound:.2f}x"),
                number(cost.flops, f"{cost.flops / 1e9:.3g}"),
                number(cost.peak_bytes, f"{cost.peak_bytes / 2**20:.1f}"),
                number(cost.kv_bytes, f"{cost.kv_bytes / 2**20:.2f}"),
            ],
            _data(cost.cell),
            cost.method == FULL,
        )
        for cost in costs
    ]
    return ReportTable("cost", header, lines)


def _milliseconds(time: Timing) -> ReportCell:
    low, median, high = (1e3 * each for each in (time.low, time.median, time.high))
    return number(time.median, f"{median:.2f}", detail=f"{low:.1f} to {high:.1f}")


def _speed_up(faster: Timing) -> ReportCell:
    style = "good" if faster.low > 1 else "bad" if faster.high < 1 else ""
    return number(faster.median, f"{faster.median:.2f}x", style)


def pair_tables(pairs: Sequence[PairedTest]) -> list[FoldedTable]:
    """The second minus the first: checkpoints against each other, then the methods of each checkpoint and budget."""
    groups: dict[str, list[PairedTest]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.first[1] != pair.second[1]):
        if pair.first[1] == pair.second[1]:
            title = f"{pair.second[0]} against {pair.first[0]}"
        else:
            title = f"{pair.first[0]}, methods at {budget_text(pair.first[2])}"
        groups.setdefault(title, []).append(pair)
    return [FoldedTable(title, _pair_table(f"pairs-{i + 1}", each)) for i, (title, each) in enumerate(groups.items())]


def _pair_table(name: str, pairs: Iterable[PairedTest]) -> ReportTable:
    header = ["first", "second", "difference", "p", "p, Holm", "gained", "lost", "n"]
    lines = [
        ReportRow(
            [
                *_sides(pair),
                *difference_cells(pair.difference),
                _p_cell(pair.p_holm),
                number(pair.difference.gained, str(pair.difference.gained)),
                number(pair.difference.lost, str(pair.difference.lost)),
                number(pair.difference.n, str(pair.difference.n)),
            ],
            {"set": pair.set, "metric": pair.metric, "kind": pair.kind},
            significant=pair.p_holm < SIGNIFICANT,
        )
        for pair in pairs
    ]
    return ReportTable(name, header, lines)


def _sides(pair: PairedTest) -> list[ReportCell]:
    """Only what differs needs to be read; what both share is in the title, or below."""
    (one, method, budget), (other, second_method, _) = pair.first, pair.second
    if method != second_method:
        return [ReportCell(method), ReportCell(second_method)]
    shared = "full tokens" if method == FULL else f"{method}, {budget_text(budget)}"
    return [ReportCell(one, detail=shared), ReportCell(other, detail=shared)]


def cell_filters(rows: Iterable[ReportRow], *required: str) -> list[RowFilter]:
    """Filters by what the rows have; those of `required` always show one value. Full tokens need no filter."""
    values: dict[str, list[str]] = {}
    for row in rows:
        for name, value in row.data.items():
            found = values.setdefault(name, [])
            if value not in found and not (row.reference and name in ("method", "budget")):
                found.append(value)
    return [RowFilter(name, found, name not in required) for name, found in values.items() if len(found) > 1]


def _of_all_kinds(rows: Iterable[ScoreRow]) -> list[ScoreRow]:
    return [row for row in rows if row.kind == ALL_KINDS]


def _data(cell: CellKey) -> dict[str, str]:
    checkpoint, method, budget = cell
    return {"checkpoint": checkpoint, "method": method, "budget": budget_text(budget)}
