"""Each metric on answers whose score is known by hand, or from the benchmark that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_train.common.metrics import (
    METRICS,
    anls,
    contains,
    edit_distance,
    exact_match,
    normalize_vqa,
    unknown_metric,
    vqa,
    yes_or_no,
)
from dart_train.common.statistics import estimate

CASES = [
    (exact_match, "Red.", ["red"], 1.0),
    (exact_match, " top  left ", ["Top left"], 1.0),
    (exact_match, "dark red", ["red"], 0.0),
    (exact_match, "3.5", ["35"], 0.0),
    (exact_match, "sofa", ["couch", "sofa"], 1.0),
    (contains, "It is a red circle.", ["red circle"], 1.0),
    (contains, "It is hundred", ["red"], 0.0),  # words, not letters
    (contains, "red", ["red circle"], 0.0),
    (contains, "anything", ["?"], 0.0),  # an answer without a word is in nothing
    (vqa, "the two", ["2"], 1.0),
    (vqa, "yes", ["yes"] * 3 + ["no"] * 7, 0.9),  # 3 x 2/3 + 7 x 1, over 10
    (vqa, "yes", ["yes"] * 4 + ["no"] * 6, 1.0),
    (vqa, "yes", ["yes"] + ["no"] * 9, 0.3),  # 9 x 1/3, over 10
    (vqa, "maybe", ["yes"] * 10, 0.0),
    (vqa, "yes", ["yes", "yes", "yes"], 1.0),
    (anls, "invoice 12", ["invoice 12"], 1.0),
    (anls, "invoice 13", ["invoice 12"], 0.9),
    (anls, "abcd", ["wxyz", "abxx"], 0.0),  # half of it is wrong
    (anls, "abc", ["abd"], 1 - 1 / 3),
    (anls, "", ["a"], 0.0),
    (yes_or_no, "Yes, there is.", ["yes"], 0.0),
    (yes_or_no, "Yes", ["no"], 1.0),
    (yes_or_no, "There is not", ["yes"], 2.0),
    (yes_or_no, "no", ["no"], 3.0),
    (yes_or_no, "red", ["no"], 1.0),  # neither yes nor no is wrong
    (yes_or_no, "red", ["yes"], 2.0),
    (yes_or_no, "yes", ["red"], None),
    (yes_or_no, "yes", ["no smoking"], None),
]


@pytest.mark.parametrize(("metric", "prediction", "answers", "score"), CASES)
def test_score_is_as_defined(metric, prediction, answers, score) -> None:
    assert metric(prediction, answers) == (score if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    ("text", "plain"),
    [("The Dog!", "dog"), ("1,000", "1000"), ("3.5 m", "3.5 m"), ("three", "3"), ("dont", "don't"), ("x-b", "x b"),
     ("10:30", "10:30"), ("none", "0"), ("won't", "won't")],
)  # fmt: skip
def test_vqa_normalization(text: str, plain: str) -> None:
    assert normalize_vqa(text) == plain


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) <= max(len(a), len(b))
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_f1_of_yes_is_that_of_its_definition() -> None:
    pairs = [("yes", "yes")] * 6 + [("yes", "no")] * 2 + [("no", "yes")] * 1 + [("no", "no")] * 9
    cases = np.array([yes_or_no(one, [wanted]) for one, wanted in pairs])
    precision, recall = 6 / 8, 6 / 7
    assert METRICS["yes_no_f1"].aggregate(cases) == pytest.approx(2 * precision * recall / (precision + recall))


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=12), st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_no_text_breaks_a_metric(name: str, text: str, answers: list[str]) -> None:
    metric = METRICS[name]
    score = metric.score(text, answers)
    assert score is None or 0 <= score <= 3
    found = estimate(metric, [] if score is None else [score])
    assert (found is None) == (score is None)
    assert found is None or 0 <= found.low <= found.value <= found.high <= 1


def test_unknown_metric_is_named_with_a_guess() -> None:
    assert unknown_metric("anls") is None
    assert "did you mean exact_match?" in str(unknown_metric("exact_mach"))
