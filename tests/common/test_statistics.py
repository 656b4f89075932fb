"""Coverage of the intervals, false positive rate of the tests, and published values."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_train.common.metrics import METRICS, mean
from dart_train.common.statistics import (
    bootstrap,
    clustered_interval,
    estimate,
    holm,
    mcnemar,
    paired_difference,
    wilson,
)

EXACT, VQA, F1 = METRICS["exact_match"], METRICS["vqa"], METRICS["yes_no_f1"]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),  # from tables of Wilson's interval
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_equals_published_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson(correct, total) == pytest.approx((low, high), abs=1e-4)


def test_wilson_rejects_impossible_counts() -> None:
    with pytest.raises(ValueError, match="3 correct of 2"):
        wilson(3, 2)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_wilson_coverage(share: float) -> None:
    chances = [comb(60, k) * share**k * (1 - share) ** (60 - k) for k in range(61)]
    covered = sum(p for k, p in enumerate(chances) if wilson(k, 60)[0] <= share <= wilson(k, 60)[1])
    assert 0.92 < covered < 0.98


def test_bootstrap_coverage() -> None:
    chance = np.random.default_rng(0)
    intervals = [bootstrap(chance.choice([0, 0.3, 0.6, 1], 80), mean, seed) for seed in range(200)]
    covered = sum(low <= 0.475 <= high for low, high in intervals)
    assert 180 <= covered <= 198


def test_bootstrap_is_deterministic() -> None:
    scores = np.random.default_rng(1).random(50)
    assert bootstrap(scores, mean, 3) == bootstrap(scores, mean, 3) != bootstrap(scores, mean, 4)


def test_bootstrap_in_pieces_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(1).random(50)
    expected = bootstrap(scores, mean, 3)
    monkeypatch.setattr("dart_train.common.statistics._SCORES_AT_ONCE", 5000)
    assert bootstrap(scores, mean, 3) == expected


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    total = gained + lost
    tail = sum(comb(total, k) for k in range(min(gained, lost) + 1)) / 2**total
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail)) == mcnemar(lost, gained)


def test_mcnemar_with_large_counts() -> None:
    assert mcnemar(5000, 5000) == 1.0 and 0 < mcnemar(4800, 5200) < 1e-4


@pytest.mark.parametrize("metric", [EXACT, VQA, F1])
def test_false_positive_rate_of_paired_tests(metric) -> None:
    chance = np.random.default_rng(2)
    values = {"exact_match": [0, 1], "vqa": [0, 0.3, 0.6, 1], "yes_no_f1": [0, 1, 2, 3]}[metric.name]
    significant = 0
    for seed in range(150):
        first, second = chance.choice(values, (2, 60))
        found = paired_difference(metric, list(first), list(second), seed)
        significant += found.p < 0.05
    assert significant <= 16  # of 150, where 7.5 are expected


@pytest.mark.parametrize(("metric", "better", "worse"), [(EXACT, 1.0, 0.0), (VQA, 0.6, 0.3), (F1, 0.0, 2.0)])
def test_clear_difference_is_significant(metric, better: float, worse: float) -> None:
    same = [better] * 60
    found = paired_difference(metric, [worse] * 40 + same, [better] * 40 + same)
    assert found.p < 0.01 and found.low > 0 and (found.gained, found.lost, found.n) == (40, 0, 100)
    back = paired_difference(metric, [better] * 40 + same, [worse] * 40 + same)
    assert back.value == pytest.approx(-found.value) and back.lost == 40


def test_equal_answers_do_not_differ() -> None:
    for metric, one in ((EXACT, 1.0), (VQA, 0.3)):
        found = paired_difference(metric, [one, 0.0] * 10, [one, 0.0] * 10)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_pair_needs_the_same_questions() -> None:
    with pytest.raises(ValueError, match="2 and 1 scores"):
        paired_difference(EXACT, [1.0, 0.0], [1.0])
    assert paired_difference(EXACT, [], []) is None


def test_holm_equals_published_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_proportion_has_wilsons_interval() -> None:
    found = estimate(EXACT, [1.0] * 30 + [0.0] * 70)
    assert (found.value, found.n) == (0.3, 100) and (found.low, found.high) == wilson(30, 100)


def test_clustered_interval_is_as_wide_as_clusters_are_few() -> None:
    generator = np.random.default_rng(0)
    of_cluster = generator.integers(0, 2, size=40).astype(float)
    values, clusters = np.repeat(of_cluster, 25), np.repeat(np.arange(40), 25)
    low, high = clustered_interval(list(values), list(clusters))
    apart = clustered_interval(list(values), list(range(1000)))
    alone = clustered_interval(list(of_cluster), list(range(40)))
    assert low <= values.mean() <= high and (low, high) == pytest.approx(alone)
    assert high - low > 4 * (apart[1] - apart[0])


def test_clustered_interval_needs_a_cluster_for_each_value() -> None:
    for values, clusters in (([], []), ([1.0], [0, 1])):
        with pytest.raises(ValueError, match="clusters were given"):
            clustered_interval(values, clusters)
