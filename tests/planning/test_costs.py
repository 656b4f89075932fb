"""How costs add up, and at which kept share a reduction starts to pay. Nothing is timed here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train import KeepAll
from dart_train.planning.costs import Rates, break_even_ratio
from dart_train.planning.predict import PlanInputs
from dart_train.profiling.flops import QuadraticCost
from tests.planning.cases import inputs_of, quick

RATES = Rates(QuadraticCost(1e-4, 1e-5, 1e-8), QuadraticCost(0, 3e-6), QuadraticCost(0, 1e-6), 1e-6, other=1e-3)


def test_keep_all_gains_nothing_and_pays_for_the_selection(text: str) -> None:
    inputs = inputs_of(text, "reduction=keep_all")
    full, all_kept = inputs.full.work, inputs.batches.workload([KeepAll(layer=2)])
    rates = replace(RATES, choice=2e-5)
    before, after = rates.step(full, 1), rates.step(all_kept, 1)
    assert after.pop("choice of tokens") == pytest.approx(2e-5 * full.rows.mean())
    assert before.pop("choice of tokens") == 0
    assert before == pytest.approx(after)
    plan = quick(text, "reduction=keep_all")
    assert plan.bound == pytest.approx(1) and plan.recipe.visual_kept == plan.full.visual_kept


@settings(max_examples=30, deadline=None)
@given(costs=st.lists(st.floats(0, 1e-3), min_size=2, max_size=6), layer=st.integers(0, 4))
def test_break_even_ratio_falls_with_the_cost_of_selection(inputs: PlanInputs, costs: list[float], layer: int) -> None:
    found = [break_even_ratio(replace(RATES, choice=cost), inputs.batches, layer) for cost in sorted(costs)]
    shares = [-1.0 if share is None else share for share in found]
    assert shares == sorted(shares, reverse=True)


def test_break_even_ratio_is_where_both_take_as_long(inputs: PlanInputs) -> None:
    rates, batches = replace(RATES, choice=5e-5), inputs.batches
    share = break_even_ratio(rates, batches, 2)
    assert share is not None and 0 < share < 1

    def seconds(work: Any) -> float:
        return sum(rates.step(work, 1).values())

    assert seconds(batches.at_share(share, 2)) == pytest.approx(seconds(batches.workload()), rel=1e-6)
    assert break_even_ratio(RATES, batches, 2) == pytest.approx(1.0)  # a choice that costs nothing
    assert break_even_ratio(replace(RATES, choice=1.0), batches, 2) is None


def test_fewer_tokens_are_never_slower(inputs: PlanInputs) -> None:
    times = [sum(RATES.step(inputs.batches.at_share(share, 2), 1).values()) for share in (0.0, 0.3, 0.6, 1.0)]
    assert times == sorted(times)


def test_ranks_wait_for_the_slowest(text: str) -> None:
    work = inputs_of(text, ranks=2).batches.workload()
    alone, together = RATES.step(work, 3), RATES.step(work, 3, ranks=2)
    micro = np.asarray(sum(RATES.costs(work).values()))
    assert sum(together.values()) == pytest.approx(3 * micro.reshape(-1, 2).max(1).mean())
    assert sum(alone.values()) == pytest.approx(3 * micro.mean())
    assert sum(alone.values()) < sum(together.values())


_TERMS = st.floats(1e-9, 1e-2)


@given(call=_TERMS, token=_TERMS, pair=_TERMS)
def test_quadratic_fit_recovers_its_terms(call: float, token: float, pair: float) -> None:
    true = QuadraticCost(call, token, pair)
    points = [(rows, length, float(true(rows, length))) for rows, length in ((4, 50), (4, 120), (4, 300), (1, 80))]
    found = QuadraticCost.fit(points)
    assert all(found(rows, length) == pytest.approx(cost, rel=1e-6) for rows, length, cost in points)


@given(costs=st.lists(st.floats(1e-6, 10), min_size=3, max_size=3))
def test_quadratic_fit_has_no_negative_term(costs: list[float]) -> None:
    found = QuadraticCost.fit([(4, length, cost) for length, cost in zip((50, 100, 200), costs, strict=True)])
    assert min(found.call, found.token, found.pair) >= 0 < found(1, 10)
