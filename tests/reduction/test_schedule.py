"""Budgets as functions of the step: what they draw, and that they draw it again."""

from __future__ import annotations

import pytest

from dart_train.config import Distill, Elastic, Fixed, Progressive
from dart_train.reduction.schedule import budget_at_step, dropped_range, teacher_keep

STEPS = 1000


def test_fixed_is_the_stages_budget() -> None:
    assert {budget_at_step(Fixed(), 64, step, STEPS, seed=0) for step in range(50)} == {64}


def test_elastic_draws_every_choice_about_equally_often() -> None:
    choices = (1.0, 0.5, 64)
    drawn = [budget_at_step(Elastic(choices=choices), 0.2, step, STEPS, seed=3) for step in range(STEPS)]
    for choice in choices:
        assert drawn.count(choice) == pytest.approx(STEPS / len(choices), rel=0.15)


def test_elastic_keeps_numbers_numbers_and_ratios_ratios() -> None:
    drawn = {budget_at_step(Elastic(choices=(1, 1.0)), 0.2, step, STEPS, seed=0).__class__ for step in range(50)}
    assert drawn == {int, float}


@pytest.mark.parametrize("schedule", [Elastic(), Progressive()])
def test_step_draws_the_same_whatever_came_before(schedule: Elastic | Progressive) -> None:
    forward = [budget_at_step(schedule, 0.2, step, STEPS, seed=5) for step in range(100)]
    backward = [budget_at_step(schedule, 0.2, step, STEPS, seed=5) for step in reversed(range(100))]
    assert forward == backward[::-1]
    assert forward != [budget_at_step(schedule, 0.2, step, STEPS, seed=6) for step in range(100)]


def test_progressive_stays_in_a_range_that_grows() -> None:
    schedule = Progressive()
    assert dropped_range(schedule, 0, STEPS) == (0.10, 0.10)
    assert dropped_range(schedule, STEPS - 1, STEPS) == pytest.approx((0.26, 0.74))
    for step in range(0, STEPS, 7):
        low, high = dropped_range(schedule, step, STEPS)
        assert low - 1e-9 <= 1 - budget_at_step(schedule, 0.2, step, STEPS, seed=0) <= high + 1e-9
    late = [1 - budget_at_step(schedule, 0.2, step, STEPS, seed=0) for step in range(900, STEPS)]
    assert min(late) < 0.35 and max(late) > 0.65


def test_one_step_is_its_own_beginning() -> None:
    assert dropped_range(Progressive(), 0, 1) == (0.10, 0.10)


def test_steps_after_the_last_stay_at_the_end() -> None:
    """A run that was extended: the range must not grow beyond `end_*`."""
    last = dropped_range(Progressive(), STEPS - 1, STEPS)
    assert dropped_range(Progressive(), STEPS, STEPS) == dropped_range(Progressive(), 2 * STEPS, STEPS) == last
    distill = Distill(enabled=True)
    assert teacher_keep(distill, 0.5, 576, 2 * STEPS, STEPS) == pytest.approx(0.5 + distill.gap_end)


def test_teacher_keep_is_larger_and_at_most_all() -> None:
    distill = Distill(enabled=True)
    assert teacher_keep(distill, 0.5, 576, 0, STEPS) == pytest.approx(0.6)
    assert teacher_keep(distill, 0.5, 576, STEPS - 1, STEPS) == pytest.approx(0.8)
    assert teacher_keep(distill, 288, 576, 0, STEPS) == pytest.approx(0.6)
    assert teacher_keep(distill, 0.95, 576, 0, STEPS) == 1.0
    assert teacher_keep(distill, 64, 0, 0, STEPS) == 1.0
    assert teacher_keep(Distill(enabled=True, teacher="full"), 0.2, 576, 0, STEPS) == 1.0
