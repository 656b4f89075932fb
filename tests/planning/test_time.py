"""How costs add up, and from where on a reduction pays. No clock is looked at here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train import KeepAll
from dart_train.planning.case import Case
from dart_train.planning.payoff import breaks_even
from dart_train.planning.rates import Rates
from dart_train.profiling.flops import QuadraticCost
from tests.planning.cases import case_of, quick

RATES = Rates(QuadraticCost(1e-4, 1e-5, 1e-8), QuadraticCost(0, 3e-6), QuadraticCost(0, 1e-6), 1e-6, other=1e-3)


def test_keep_all_gains_nothing_and_pays_for_the_choice(text: str) -> None:
    case = case_of(text, "reduction=keep_all")
    full, all_kept = case.full.work, case.workload.of([KeepAll(layer=2)])
    rates = replace(RATES, choice=2e-5)
    before, after = rates.step(full, 1), rates.step(all_kept, 1)
    assert after.pop("choice of tokens") == pytest.approx(2e-5 * full.rows.mean())
    assert before.pop("choice of tokens") == 0
    assert before == pytest.approx(after)
    plan = quick(text, "reduction=keep_all")
    assert plan.bound == pytest.approx(1) and plan.recipe.visual_kept == plan.full.visual_kept


@settings(max_examples=30, deadline=None)
@given(costs=st.lists(st.floats(0, 1e-3), min_size=2, max_size=6), layer=st.integers(0, 4))
def test_a_dearer_choice_pays_later(case: Case, costs: list[float], layer: int) -> None:
    found = [breaks_even(replace(RATES, choice=cost), case.workload, layer) for cost in sorted(costs)]
    shares = [-1.0 if share is None else share for share in found]
    assert shares == sorted(shares, reverse=True)


def test_it_breaks_even_where_both_take_as_long(case: Case) -> None:
    rates, workload = replace(RATES, choice=5e-5), case.workload
    share = breaks_even(rates, workload, 2)
    assert share is not None and 0 < share < 1

    def seconds(work: Any) -> float:
        return sum(rates.step(work, 1).values())

    assert seconds(workload.at(share, 2)) == pytest.approx(seconds(workload.of()), rel=1e-6)
    assert breaks_even(RATES, workload, 2) == 1.0  # a choice that costs nothing
    assert breaks_even(replace(RATES, choice=1.0), workload, 2) is None


def test_fewer_tokens_are_never_slower(case: Case) -> None:
    times = [sum(RATES.step(case.workload.at(share, 2), 1).values()) for share in (0.0, 0.3, 0.6, 1.0)]
    assert times == sorted(times)


def test_ranks_wait_for_the_slowest(text: str) -> None:
    work = case_of(text, ranks=2).workload.of()
    alone, together = RATES.step(work, 3), RATES.step(work, 3, ranks=2)
    micro = np.asarray(sum(RATES.of(work).values()))
    assert sum(together.values()) == pytest.approx(3 * micro.reshape(-1, 2).max(1).mean())
    assert sum(alone.values()) == pytest.approx(3 * micro.mean())
    assert sum(alone.values()) < sum(together.values())


_TERMS = st.floats(1e-9, 1e-2)


@given(call=_TERMS, token=_TERMS, pair=_TERMS)
def test_a_quadratic_is_found_again(call: float, token: float, pair: float) -> None:
    true = QuadraticCost(call, token, pair)
    points = [(rows, length, float(true(rows, length))) for rows, length in ((4, 50), (4, 120), (4, 300), (1, 80))]
    found = QuadraticCost.fit(points)
    assert all(found(rows, length) == pytest.approx(cost, rel=1e-6) for rows, length, cost in points)


@given(costs=st.lists(st.floats(1e-6, 10), min_size=3, max_size=3))
def test_no_noise_makes_a_cost_negative(costs: list[float]) -> None:
    found = QuadraticCost.fit([(4, length, cost) for length, cost in zip((50, 100, 200), costs, strict=True)])
    assert min(found.call, found.token, found.pair) >= 0 < found(1, 10)
