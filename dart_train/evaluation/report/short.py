"""The comparison in a few sentences, each as sure as its test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...common.statistics import PairedDifference
from ..comparison import ComparisonResults
from ..comparison_grid import FULL
from ..scoring import ALL_KINDS, PairedTest, ScoreRow
from .html import text

CLEAR = 0.05
_MOST = 6  # sentences of one sort


def sentences(results: ComparisonResults) -> list[str]:
    """Finished HTML. Of the first set and its first metric."""
    entries = primary(results)
    return [
        *_checkpoints(entries),
        *list(_losses(entries))[:_MOST],
        *list(_between(results.pairs, entries))[:_MOST],
        *_speed(results),
    ]


def primary(results: ComparisonResults) -> list[ScoreRow]:
    entries = [entry for entry in results.scores if entry.kind == ALL_KINDS]
    return [e for e in entries if (e.set, e.metric) == (entries[0].set, entries[0].metric)]


def budget_words(budget: str) -> str:
    if budget == FULL:
        return "full tokens"
    value = float(budget)
    return f"{100 * value:.3g}% of the visual tokens" if value < 1 else f"{value:.0f} visual tokens"


def smallest(entries: Sequence[ScoreRow]) -> str | None:
    """The budget that keeps least."""
    reduced = [entry for entry in entries if entry.cell[1] != FULL and entry.cell[2] != FULL and entry.kept is not None]
    return min(reduced, key=lambda entry: entry.kept or 0.0).cell[2] if reduced else None


def verdict(found: PairedDifference) -> str:
    points = f"<b>{100 * found.value:+.1f} points</b> ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    sure = f"p {'&lt; 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}"
    if found.p < CLEAR:
        return f"{points}, {sure}"
    return f"{points}, which {found.n} questions cannot tell from chance ({sure})"


def _checkpoints(entries: Sequence[ScoreRow]) -> Iterator[str]:
    for entry in entries:
        if entry.cell[1] == FULL:
            shown = f"{100 * entry.score.value:.1f}% ({100 * entry.score.low:.1f} to {100 * entry.score.high:.1f})"
            yield f"<b>{text(entry.cell[0])}</b> with full tokens: {shown} of {entry.score.n} questions."


def _losses(entries: Sequence[ScoreRow]) -> Iterator[str]:
    """The method that loses least at the smallest budget, of each checkpoint."""
    least = smallest(entries)
    for name in dict.fromkeys(entry.cell[0] for entry in entries):
        here = [e for e in entries if e.cell[0] == name and e.cell[2] == least and e.from_full is not None]
        if here:
            best = max(here, key=lambda entry: entry.score.value)
            assert best.from_full is not None and least is not None
            told = f"best is {text(best.cell[1])}, against full tokens {verdict(best.from_full)}"
            yield f"<b>{text(name)}</b> at {budget_words(least)}: {told}."


def _between(pairs: Sequence[PairedTest], entries: Sequence[ScoreRow]) -> Iterator[str]:
    """Checkpoints at the smallest budget, the first method of the recipe, and at full tokens."""
    where = _places(entries)
    for pair in pairs:
        same = pair.first[1:] == pair.second[1:] and pair.kind == ALL_KINDS
        if same and pair.first[1:] in where and (pair.set, pair.metric) == (entries[0].set, entries[0].metric):
            one, other, method = text(pair.first[0]), text(pair.second[0]), text(pair.first[1])
            at = "full tokens" if method == FULL else f"{method}, {budget_words(pair.first[2])}"
            yield f"<b>{other}</b> against <b>{one}</b> ({at}): {verdict(pair.difference)}."


def _places(entries: Sequence[ScoreRow]) -> list[tuple[str, str]]:
    least = smallest(entries)
    methods = [entry.cell[1] for entry in entries if entry.cell[2] == least]
    return [(FULL, FULL), *([(methods[0], least)] if methods and least is not None else [])]


def _speed(results: ComparisonResults) -> Iterator[str]:
    reduced = [cost for cost in results.costs if cost.method != FULL]
    if not reduced:
        return
    best = max(reduced, key=lambda cost: cost.faster_total.median)
    name = text(f"{best.checkpoint}, {best.method}, {budget_words(best.budget)}")
    yield (
        f"Fastest by the clock: {name}. A whole answer comes {best.faster_total.median:.2f} times as fast as with "
        f"full tokens, the prefill {best.faster_prefill.median:.2f} times, where its FLOPs allow {best.bound:.2f}."
    )
