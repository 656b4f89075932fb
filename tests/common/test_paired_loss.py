"""The exact test of a paired loss with a margin: p values are valid, and not needlessly large."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest

from dart_train.common.paired_loss import _largest_tail, _tail, loss_bound, loss_p_value, questions_needed


def plain_tail(statistic: int, number: int, lost: float, gained: float) -> float:
    """P(lost - gained <= statistic), term by term of the trinomial distribution."""
    same, total = 1 - lost - gained, 0.0
    for a, b in product(range(number + 1), repeat=2):
        if a + b <= number and a - b <= statistic:
            ways = comb(number, a) * comb(number - a, b)
            total += ways * lost**a * gained**b * same ** (number - a - b)
    return total


@pytest.mark.parametrize(("number", "lost", "gained"), [(1, 0.3, 0.1), (7, 0.2, 0.1), (30, 0.06, 0.04), (30, 0.5, 0.5)])
def test_tail_is_that_of_the_trinomial_distribution(number: int, lost: float, gained: float) -> None:
    for statistic in range(-number, number + 1):
        assert _tail(statistic, number, lost, gained) == pytest.approx(
            plain_tail(statistic, number, lost, gained), abs=1e-8
        )


@pytest.mark.parametrize("statistic", [-6, 0, 4, 12])
def test_supremum_is_at_least_every_value_and_close_to_the_largest(statistic: int) -> None:
    number, margin, upper = 200, 0.05, 0.3
    found = _largest_tail(statistic, number, margin, upper, 0.05)
    changed = np.linspace(margin, upper, 400)
    values = [_tail(statistic, number, (c + margin) / 2, (c - margin) / 2) for c in changed]
    assert max(values) <= found <= 1.1 * max(values) + 2e-3


@pytest.mark.parametrize("changed", [0.08, 0.2, 1.0])
def test_probability_of_a_false_pass_is_at_most_alpha(changed: float) -> None:
    """Exactly, over all outcomes, at the border of the null hypothesis."""
    number, alpha, margin, wrong = 50, 0.1, 0.08, 0.0
    lost, gained = (changed + margin) / 2, (changed - margin) / 2
    for a, b in product(range(number + 1), repeat=2):
        same = number - a - b
        ways = comb(number, a) * comb(number - a, b) if same >= 0 else 0
        probability = float(ways * lost**a * gained**b * (1 - changed) ** same) if ways else 0.0
        if probability > 1e-7 and loss_p_value(a, b, number, margin, alpha) <= alpha:
            wrong += probability
    assert wrong <= alpha


def test_p_falls_with_fewer_losses_more_gains_and_a_larger_margin() -> None:
    by_lost = [loss_p_value(lost, 5, 500, 0.02) for lost in range(0, 20, 3)]
    by_margin = [loss_p_value(8, 5, 500, margin) for margin in (0.01, 0.02, 0.03, 0.05)]
    assert by_lost == sorted(by_lost) and by_margin == sorted(by_margin, reverse=True)
    assert loss_p_value(8, 12, 500, 0.02) < loss_p_value(8, 5, 500, 0.02)


def test_bound_is_the_smallest_margin_that_passes() -> None:
    bound = loss_bound(9, 6, 700, 0.05)
    assert 3 / 700 < bound < 0.03
    assert loss_p_value(9, 6, 700, bound) <= 0.05 < loss_p_value(9, 6, 700, bound - 3e-4)
    assert loss_bound(40, 0, 40, 0.05) == 1.0


def test_number_of_questions_that_is_needed() -> None:
    needed = questions_needed(0.02, 0.05)
    assert 149 <= needed <= 300  # 149: the number if it were known that none is gained
    assert loss_p_value(0, 0, needed, 0.02) <= 0.05 < loss_p_value(0, 0, needed - 1, 0.02)


@pytest.mark.parametrize("wrong", [(1, 1, 1, 0.02), (-1, 0, 5, 0.02), (0, 0, 0, 0.02), (0, 0, 5, 0.0), (0, 0, 5, 1.5)])
def test_impossible_counts_and_margins_are_refused(wrong: tuple[int, int, int, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        loss_p_value(*wrong)
