"""What the papers on visual token reduction ask, answered by this comparison's own cells where they allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...common.statistics import PairedDifference
from ...reduction import DART, Pooling, Random, Reducer, UniformGrid
from ..comparison import ComparisonResults
from ..comparison_grid import FULL, ComparisonCell
from ..scoring import ALL_KINDS, CellKey, ScoreGroup
from .html import TableRow, table, words
from .short import smallest
from .tables import apart_cells, budget_cell


def questions(results: ComparisonResults) -> list[str]:
    """Finished HTML: one part for each question that can be answered."""
    group = next((group for group in results.groups if group.kind == ALL_KINDS), None)
    if group is None:
        return []
    parts = [_random(results, group), _merged(results, group), *_guidance(results)]
    return [part for part in parts if part]


def _random(results: ComparisonResults, group: ScoreGroup) -> str:
    """Every method against Random at the same budget."""
    rivals = {(c.checkpoint, c.budget): c for c in results.cells if type(c.reducer) is Random}
    rows = []
    for cell in results.cells:
        rival = rivals.get((cell.checkpoint, cell.budget))
        if rival is not None and rival.method != cell.method and cell.method != FULL:
            rows += _row(group, rival, cell, results.seed, [cell.checkpoint, cell.method])
    if not rows:
        return ""
    note = "A choice is worth its price where it beats a blind one. Positive: better than Random at the same budget."
    head = ["checkpoint", "method", "budget", "against Random", "95%", "p"]
    return f'<h3>Is Random as strong as they say?</h3><p class="note">{note}</p>{table("random", head, rows)}'


def _merged(results: ComparisonResults, group: ScoreGroup) -> str:
    """The same method with its dropped tokens merged into kept ones, and pooling against a uniform choice."""
    rows = []
    for cell, twin in _twins(results.cells, _merge_less):
        rows += _row(group, twin, cell, results.seed, [cell.checkpoint, f"{cell.method} against {twin.method}"])
    pools = [cell for cell in results.cells if type(cell.reducer) is Pooling]
    grids = {(cell.checkpoint, cell.budget): cell for cell in results.cells if type(cell.reducer) is UniformGrid}
    for cell in pools:
        twin_ = grids.get((cell.checkpoint, cell.budget))
        if twin_ is not None:
            rows += _row(group, twin_, cell, results.seed, [cell.checkpoint, f"{cell.method} against {twin_.method}"])
    if not rows:
        return ""
    note = "Dropped tokens can be lost, or averaged into those that stay. Positive: merging is better."
    head = ["checkpoint", "methods", "budget", "merged less pruned", "95%", "p"]
    return f'<h3>Prune or merge?</h3><p class="note">{note}</p>{table("merging", head, rows)}'


def _guidance(results: ComparisonResults) -> Iterator[str]:
    """DART with pivots in the text against DART without, kind by kind, at the smallest budget."""
    least = smallest(results.scores)
    twins = [pair for pair in _twins(results.cells, _without_text) if pair[0].budget == least]
    rows = []
    for cell, twin in twins:
        for group in results.groups:
            rows += _row(group, twin, cell, results.seed, [cell.checkpoint, group.set, group.kind, group.metric.name])
    if rows:
        note = "Pivots in the question steer the choice towards what it asks for. Positive: guidance is better."
        head = ["checkpoint", "set", "kind", "metric", "budget", "guided less unguided", "95%", "p"]
        title = "What does language guidance bring, and on which kinds?"
        yield f'<h3>{title}</h3><p class="note">{note}</p>{table("guidance", head, rows)}'


def _row(
    group: ScoreGroup, first: ComparisonCell, second: ComparisonCell, seed: int, names: Sequence[str]
) -> list[TableRow]:
    found: PairedDifference | None = group.difference(_place(first), _place(second), seed)
    if found is None:
        return []
    return [TableRow([*(words(name) for name in names), budget_cell(second.budget), *apart_cells(found)])]


def _place(cell: ComparisonCell) -> CellKey:
    return (cell.checkpoint, cell.method, cell.budget)


def _twins(cells: Sequence[ComparisonCell], other: object) -> Iterator[tuple[ComparisonCell, ComparisonCell]]:
    """Cells, each with the one whose method `other` makes of its own."""
    for cell in cells:
        wanted = other(cell.reducer) if cell.reducer is not None and callable(other) else None
        for twin in cells:
            if wanted is not None and twin.checkpoint == cell.checkpoint and twin.reducer == wanted:
                yield cell, twin


def _merge_less(reducer: Reducer) -> Reducer | None:
    return replace(reducer, merge="none") if reducer.merge != "none" else None


def _without_text(reducer: Reducer) -> Reducer | None:
    guided = isinstance(reducer, DART) and reducer.text_pivots and reducer.image_pivots
    return replace(reducer, text_pivots=0) if guided else None  # type: ignore[call-arg]
