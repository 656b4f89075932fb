"""The headline is the cheapest row that keeps the accuracy, never a fast row that loses it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from dart_train.common.statistics import Estimate, PairedDifference
from dart_train.evaluation.report.findings import BestTrade, best_trades
from dart_train.evaluation.results import ComparisonResults
from dart_train.evaluation.scoring import ScoreRow
from dart_train.profiling.timing import Timing

Cell = tuple[str, float, float, float]  # method, share kept, accuracy, p


def trade(*cells: Cell, seconds: dict[str, float] | None = None) -> BestTrade:
    """Full tokens answer 90% correctly, in one second."""
    rows, costs = [row("full", 1.0, 0.9, None)], []
    rows += [row(*cell) for cell in cells]
    for name, time in {"full": 1.0, **seconds}.items() if seconds else ():
        budget = "full" if name == "full" else "0.5"
        total, faster = Timing.of([time]), Timing.of([1 / time])
        costs.append(SimpleNamespace(cell=("base", name, budget), total=total, faster_total=faster))
    results = SimpleNamespace(scores=rows, costs=costs, prepared=SimpleNamespace(found={"base": None}))
    (found,) = best_trades(cast(ComparisonResults, results))
    return found


def row(method: str, kept: float, accuracy: float, p: float | None) -> ScoreRow:
    loss = accuracy - 0.9
    change = None if p is None else PairedDifference(loss, loss - 0.02, loss + 0.02, 100, 0, 0, p, "McNemar, exact")
    cell = ("base", method, "full" if p is None else "0.5")
    return ScoreRow(cell, "set", "all", "exact_match", Estimate(accuracy, accuracy, accuracy, 100), kept, change)


def test_fast_row_that_loses_accuracy_is_not_the_headline() -> None:
    found = trade(("dart", 0.5, 0.88, 0.3), ("random", 0.1, 0.4, 0.0001), seconds={"dart": 0.5, "random": 0.1})
    assert found.kept_accuracy and "dart" in found.title
    assert "2.00x as fast" in found.text and "not significantly below full tokens" in found.text
    assert "88.0% instead of 90.0%, -2.0 points" in found.text


def test_cheapest_of_the_accurate_rows_is_chosen_by_time() -> None:
    seconds = {"slow": 0.8, "quick": 0.6}
    assert "quick" in trade(("slow", 0.1, 0.9, 1.0), ("quick", 0.5, 0.89, 0.6), seconds=seconds).title


def test_without_timing_the_row_with_the_fewest_tokens_is_chosen() -> None:
    found = trade(("few", 0.1, 0.89, 0.6), ("many", 0.5, 0.9, 1.0))
    assert "few" in found.title and "fast" not in found.text


def test_significant_loss_of_two_points_is_tolerated_and_more_is_not() -> None:
    found = trade(("dart", 0.5, 0.885, 0.001))
    assert found.kept_accuracy and "a loss of at most 2 points" in found.text
    lost = trade(("dart", 0.5, 0.8, 0.001), ("random", 0.5, 0.7, 0.001))
    assert not lost.kept_accuracy and "no reduction keeps the accuracy" in lost.title
    assert "dart" in lost.text and "-10.0 points" in lost.text


def test_row_that_is_not_faster_is_reported_as_such() -> None:
    assert "Not faster than full tokens (0.50x)" in trade(("dart", 0.5, 0.9, 1.0), seconds={"dart": 2.0}).text
