"""What the comparison found: the best trade of each checkpoint, a summary, and questions that papers ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from ...common.statistics import PairedDifference
from ...reduction import DART, Pooling, Random, Reducer, UniformGrid
from ..comparison_grid import FULL, ComparisonCell
from ..cost import CellCost
from ..results import ComparisonResults
from ..scoring import ALL_KINDS, ScoreGroup, ScoreRow
from ..tables import format_p
from .tables import ReportCell, ReportRow, ReportTable, budget_text, difference_cells, number

TOLERATED_LOSS = 0.02  # the accuracy that the best trade may lose even if the loss is significant
_SENTENCES = 6  # of one kind


@dataclass(frozen=True)
class BestTrade:
    """The headline of a checkpoint. kept_accuracy: whether any reduction keeps the accuracy of full tokens."""

    title: Markup
    text: Markup
    kept_accuracy: bool


@dataclass(frozen=True)
class PaperQuestion:
    title: str
    note: str
    table: ReportTable


def primary_rows(results: ComparisonResults) -> list[ScoreRow]:
    """All questions of the first set in its first metric."""
    rows = [row for row in results.scores if row.kind == ALL_KINDS]
    return [row for row in rows if (row.set, row.metric) == (rows[0].set, rows[0].metric)]


def budget_words(budget: str) -> str:
    if budget == FULL:
        return "full tokens"
    value = float(budget)
    return f"{100 * value:.3g}% of the visual tokens" if value < 1 else f"{value:.0f} visual tokens"


def smallest_budget(rows: Sequence[ScoreRow]) -> str | None:
    reduced = [row for row in rows if FULL not in row.cell[1:] and row.kept is not None]
    return min(reduced, key=lambda row: row.kept or 0.0).cell[2] if reduced else None


def best_trades(results: ComparisonResults) -> list[BestTrade]:
    """For each checkpoint its cheapest cell that keeps the accuracy: not significantly below full tokens, or at most
    TOLERATED_LOSS below. Cheapest by the time of an answer, or by the tokens kept if nothing was timed."""
    costs = {cost.cell: cost for cost in results.costs}
    found = []
    for checkpoint in results.prepared.found:
        rows = [row for row in primary_rows(results) if row.cell[0] == checkpoint]
        full = next((row for row in rows if row.cell[1] == FULL), None)
        reduced = [row for row in rows if row.from_full is not None and row.kept is not None and row.kept < 1]
        if full is None or not reduced:
            continue
        good = [row for row in reduced if row.from_full is not None and keeps_accuracy(row.from_full)]
        if not good:
            found.append(_no_trade(checkpoint, reduced))
            continue
        best = min(good, key=lambda row: costs[row.cell].total.median if row.cell in costs else row.kept or 0.0)
        found.append(_trade(full, best, costs))
    return found


def keeps_accuracy(from_full: PairedDifference) -> bool:
    return from_full.value >= -TOLERATED_LOSS or not from_full.significant


def _trade(full: ScoreRow, best: ScoreRow, costs: dict[tuple[str, str, str], CellCost]) -> BestTrade:
    assert best.from_full is not None
    checkpoint, method, budget = best.cell
    title = Markup("{}: {} at {}").format(checkpoint, method, budget_words(budget))
    scores = f"{_percent(best)} instead of {_percent(full)}, {_points(best.from_full)}"
    why = "not significantly below full tokens" if not best.from_full.significant else "a loss of at most 2 points"
    if best.from_full.value >= 0:
        why = "not below full tokens"
    speed = ""
    if best.cell in costs and full.cell in costs:
        cost, ratio = costs[best.cell], costs[best.cell].faster_total.median
        times = f"{1e3 * cost.total.median:.1f} ms an answer instead of {1e3 * costs[full.cell].total.median:.1f} ms"
        speed = f"{ratio:.2f}x as fast: {times}. " if ratio > 1 else f"Not faster than full tokens ({ratio:.2f}x). "
    text = Markup("{}Accuracy {} ({}, p {}, {} questions): {}.").format(
        Markup("<b>{}</b>").format(speed) if speed else "",
        scores,
        f"95% interval {100 * best.from_full.low:+.1f} to {100 * best.from_full.high:+.1f}",
        _p(best.from_full),
        best.from_full.n,
        why,
    )
    return BestTrade(title, text, True)


def _no_trade(checkpoint: str, reduced: Sequence[ScoreRow]) -> BestTrade:
    best = max(reduced, key=lambda row: row.score.value)
    assert best.from_full is not None
    text = Markup("The smallest loss: {} at {}, {} (p {}). Every reduction is significantly below full tokens.").format(
        best.cell[1], budget_words(best.cell[2]), _points(best.from_full), _p(best.from_full)
    )
    return BestTrade(Markup("{}: no reduction keeps the accuracy").format(checkpoint), text, False)


def summary_sentences(results: ComparisonResults) -> list[Markup]:
    """Sentences on the first set and its first metric."""
    rows = primary_rows(results)
    return [
        *(_full_tokens(row) for row in rows if row.cell[1] == FULL),
        *list(_smallest_loss(rows))[:_SENTENCES],
        *list(_between_checkpoints(results, rows))[:_SENTENCES],
    ]


def describe_difference(found: PairedDifference) -> Markup:
    text = Markup("<b>{}</b> ({:+.1f} to {:+.1f}), p {}").format(
        _points(found), 100 * found.low, 100 * found.high, _p(found)
    )
    return text if found.significant else text + Markup(": not significant on {} questions").format(found.n)


def _full_tokens(row: ScoreRow) -> Markup:
    low, high = 100 * row.score.low, 100 * row.score.high
    return Markup("<b>{}</b> with full tokens: {} ({:.1f} to {:.1f}) of {} questions.").format(
        row.cell[0], _percent(row), low, high, row.score.n
    )


def _smallest_loss(rows: Sequence[ScoreRow]) -> Iterator[Markup]:
    """For each checkpoint, the best method at the smallest budget."""
    budget = smallest_budget(rows)
    for checkpoint in dict.fromkeys(row.cell[0] for row in rows):
        reduced = [r for r in rows if (r.cell[0], r.cell[2]) == (checkpoint, budget) and r.from_full is not None]
        if reduced and budget is not None:
            best = max(reduced, key=lambda row: row.score.value)
            assert best.from_full is not None
            yield Markup("<b>{}</b> at {}: the best method is {}; against full tokens {}.").format(
                checkpoint, budget_words(budget), best.cell[1], describe_difference(best.from_full)
            )


def _between_checkpoints(results: ComparisonResults, rows: Sequence[ScoreRow]) -> Iterator[Markup]:
    """Compares checkpoints with full tokens, and with the recipe's first method at the smallest budget."""
    budget = smallest_budget(rows)
    methods = [row.cell[1] for row in rows if row.cell[2] == budget]
    shown = [(FULL, FULL), *([(methods[0], budget)] if methods else [])]
    for pair in results.pairs:
        same = pair.first[1:] == pair.second[1:] and pair.kind == ALL_KINDS
        if same and pair.first[1:] in shown and (pair.set, pair.metric) == (rows[0].set, rows[0].metric):
            method = pair.first[1]
            where = "full tokens" if method == FULL else f"{method}, {budget_words(pair.first[2])}"
            yield Markup("<b>{}</b> against <b>{}</b> ({}): {}.").format(
                pair.second[0], pair.first[0], where, describe_difference(pair.difference)
            )


def _percent(row: ScoreRow) -> str:
    return f"{100 * row.score.value:.1f}%"


def _points(found: PairedDifference) -> str:
    return f"{100 * found.value:+.1f} points"


def _p(found: PairedDifference) -> str:
    text = format_p(found.p)
    return text if text.startswith("<") else f"= {text}"


# Questions of the papers on visual token reduction, as far as the cells of this comparison can answer them.


def paper_questions(results: ComparisonResults) -> list[PaperQuestion]:
    group = next((group for group in results.groups if group.kind == ALL_KINDS), None)
    if group is None:
        return []
    found = [_against_random(results, group), _merging(results, group), _guidance(results)]
    return [question for question in found if question.table.rows]


def _against_random(results: ComparisonResults, group: ScoreGroup) -> PaperQuestion:
    random = {(c.checkpoint, c.budget): c for c in results.cells if type(c.reducer) is Random}
    rows = []
    for cell in results.cells:
        rival = random.get((cell.checkpoint, cell.budget))
        if rival is not None and cell.method not in (rival.method, FULL):
            rows += _difference_row(group, rival, cell, results.seed, [cell.checkpoint, cell.method])
    return PaperQuestion(
        "Is a random selection as good?",
        "A selection is worth its cost if it is better than a random one. Positive: better than Random at the same "
        "budget.",
        ReportTable("random", ["checkpoint", "method", "budget", "against Random", "p"], rows),
    )


def _merging(results: ComparisonResults, group: ScoreGroup) -> PaperQuestion:
    """Methods with and without merging of dropped tokens into kept ones, and pooling against a uniform grid."""
    grids = {(cell.checkpoint, cell.budget): cell for cell in results.cells if type(cell.reducer) is UniformGrid}
    pairs = list(_matched_cells(results.cells, _without_merging))
    for cell in results.cells:
        grid = grids.get((cell.checkpoint, cell.budget))
        if type(cell.reducer) is Pooling and grid is not None:
            pairs.append((cell, grid))
    rows = []
    for merged, pruned in pairs:
        names = [merged.checkpoint, f"{merged.method} against {pruned.method}"]
        rows += _difference_row(group, pruned, merged, results.seed, names)
    return PaperQuestion(
        "Prune or merge?",
        "Dropped tokens can be discarded, or averaged into the tokens that are kept. Positive: merging is better.",
        ReportTable("merging", ["checkpoint", "methods", "budget", "merged minus pruned", "p"], rows),
    )


def _guidance(results: ComparisonResults) -> PaperQuestion:
    """DART with and without pivots in the text, by kind of question, at the smallest budget."""
    budget = smallest_budget(results.scores)
    rows = []
    for guided, unguided in _matched_cells(results.cells, _without_text_pivots):
        if guided.budget == budget:
            for group in results.groups:
                names = [guided.checkpoint, group.set, group.kind, group.metric.name]
                rows += _difference_row(group, unguided, guided, results.seed, names)
    return PaperQuestion(
        "What does language guidance bring, and for which kinds?",
        "Pivots in the question steer the selection towards what it asks for. Positive: guidance is better.",
        ReportTable("guidance", ["checkpoint", "set", "kind", "metric", "budget", "guided minus unguided", "p"], rows),
    )


def _difference_row(
    group: ScoreGroup, first: ComparisonCell, second: ComparisonCell, seed: int, names: Sequence[str]
) -> list[ReportRow]:
    found = group.difference(first.key, second.key, seed)
    if found is None:
        return []
    budget = number(float(second.keep), budget_text(second.budget))
    return [ReportRow([*map(ReportCell, names), budget, *difference_cells(found)])]


def _matched_cells(
    cells: Sequence[ComparisonCell], without: Callable[[Reducer], Reducer | None]
) -> Iterator[tuple[ComparisonCell, ComparisonCell]]:
    """Pairs of one checkpoint where the second's reducer is `without` of the first's."""
    for cell in cells:
        wanted = without(cell.reducer) if cell.reducer is not None else None
        for other in cells:
            if wanted is not None and other.checkpoint == cell.checkpoint and other.reducer == wanted:
                yield cell, other


def _without_merging(reducer: Reducer) -> Reducer | None:
    return replace(reducer, merge="none") if reducer.merge != "none" else None


def _without_text_pivots(reducer: Reducer) -> Reducer | None:
    guided = isinstance(reducer, DART) and reducer.text_pivots and reducer.image_pivots
    return replace(reducer, text_pivots=0) if guided else None  # type: ignore[call-arg]
