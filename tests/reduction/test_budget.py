"""How many tokens: exact counts, and what a budget may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_train.reduction import DART, Balance, Pooling, Random, Reducer, WindowFastV
from dart_train.reduction.budget import split_budget, tokens_to_keep
from dart_train.reduction.token_groups import TokenGroups
from tests.reduction.scenes import Scene

sizes = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("keep", "available", "kept"),
    [(64, 576, 64), (64, 50, 50), (0.111, 576, 64), (1 / 9, 576, 64), (0.5, 7, 4), (0.001, 576, 1), (1.0, 9, 9)],
)
def test_ratio_rounds_to_the_nearest_token_and_at_least_one(keep: int | float, available: int, kept: int) -> None:
    assert tokens_to_keep(keep, available) == kept


def test_no_tokens_keep_none() -> None:
    assert tokens_to_keep(5, 0) == tokens_to_keep(0.5, 0) == 0


@settings(max_examples=200, deadline=None)
@given(keep=st.integers(1, 200), sizes=sizes)
def test_number_is_split_exactly_and_in_proportion(keep: int, sizes: list[int]) -> None:
    parts, total = split_budget(keep, sizes), sum(sizes)
    assert sum(parts) == min(keep, total)
    for part, size in zip(parts, sizes, strict=True):
        assert 0 <= part <= size
        assert abs(part - min(keep, total) * size / max(1, total)) < 1


def test_equal_sizes_get_equal_parts_and_the_first_the_remainder() -> None:
    assert split_budget(7, [10, 10, 10]) == [3, 2, 2]


@settings(max_examples=100, deadline=None)
@given(keep=st.floats(0.01, 1), sizes=sizes)
def test_ratio_applies_to_each_group(keep: float, sizes: list[int]) -> None:
    assert split_budget(keep, sizes) == [tokens_to_keep(keep, size) for size in sizes]


ROW = "t" + "v" * 12 + "t" + "v" * 4 + "tt" + "a" + "t" + "v" * 8 + "ttt"  # two images, an answer, a third


@pytest.mark.parametrize(
    ("keep", "per", "budgets"),
    [(6, "sample", [4, 2]), (6, "image", [6, 4, 6]), (0.25, "sample", [4, 2]), (0.25, "image", [3, 1, 2])],
)
def test_turns_of_a_sample_share_its_number_and_images_have_one_each(
    keep: int | float, per: str, budgets: list[int]
) -> None:
    reducer = DART(keep=keep, per=per)
    groups = TokenGroups.of(Scene((ROW,)).batch(), reducer.per)
    assert groups is not None
    assert reducer.counts(groups) == budgets


def test_later_stage_meets_its_number_although_shares_were_rounded() -> None:
    """11 of three turns are 5 + 5 + 1, and 10 of the original ones would be 4 + 4 + 2."""
    groups = TokenGroups.of(Scene(("vvvvvvta" * 2 + "vvt",)).batch(), "sample")
    assert groups is not None
    assert DART(keep=11).counts(groups) == [5, 5, 1] and DART(keep=10).counts(groups) == [4, 4, 2]
    later = replace(groups, sizes=(5, 5, 1))
    assert sum(DART(keep=10).counts(later)) == 10
    assert DART(keep=0.25).counts(later) == [2, 2, 1]  # a ratio is one of the original tokens


def test_kept_tokens_predicts_what_is_kept() -> None:
    for reducer in (DART(keep=9), DART(keep=9, rule="paper"), Random(keep=0.3), DART(keep=4, per="image")):
        chosen = Scene(("t" + "v" * 12 + "t" + "v" * 4 + "tttt",)).choice(reducer)[0]
        assert len(chosen) == reducer.kept_tokens([12, 4])
    assert DART(keep=9).kept_tokens([]) == 0


@pytest.mark.parametrize("keep", [0, -1, True, False, 2.5, 64.0, 0.0, -0.5, "64", None, float("inf"), float("nan")])
def test_invalid_budgets_are_refused_by_name(keep: object) -> None:
    with pytest.raises(ValueError, match=r"keep=.*expected a number of tokens .* or a ratio"):
        DART(keep=keep)  # type: ignore[arg-type]


def test_number_written_as_a_ratio_gets_a_hint() -> None:
    with pytest.raises(ValueError, match=r"keep=64\.0: .*write keep=64$"):
        DART(keep=64.0)


@pytest.mark.parametrize(
    ("reducer", "options", "named"),
    [
        (Random, {"layer": -1, "per": "tile", "merge": "mean", "seed": 0.5}, ["layer", "per", "merge", "seed"]),
        (DART, {"pivot": "key", "rule": "exakt", "image_pivots": -1}, ["pivot", "rule", "image_pivots"]),
        (DART, {"image_pivots": 0, "text_pivots": 0}, ["at least one pivot"]),
        (DART, {"layer": True, "text_pivots": 4.0}, ["layer", "text_pivots"]),
        (Balance, {"alpha": 1.5, "keep": 0}, ["alpha", "keep"]),
        (WindowFastV, {"windows": 0, "layer": 2.0}, ["windows", "layer"]),
        (Pooling, {"per": None}, ["per"]),
    ],
)
def test_all_problems_are_reported_together(
    reducer: type[Reducer], options: dict[str, object], named: list[str]
) -> None:
    with pytest.raises(ValueError) as error:
        reducer(**{"keep": 9, **options})  # type: ignore[arg-type]
    message = str(error.value)
    assert message.startswith(reducer.__name__)
    assert all(name in message for name in named) and message.count("expected") == len(named)
