"""DART in batches keeps the tokens that the paper's loop keeps, one sample at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from dart_train.reduction import DART, SelectionContext
from tests.fixtures.reference_selection import dart, l1_norms
from tests.reduction.scenes import Scene, prompt, visual

RAGGED = ("tt" + "v" * 30 + "tttttt", "t" + "v" * 12 + "tt", "v" * 6 + "t" * 20 + "aa", "tttt" + "v" * 21)


def by_the_paper(scene: Scene, row: int, reducer: DART, budget: int) -> set[int]:
    alone = scene.alone(row)
    scores = l1_norms(alone.heads(3)[0])
    places = visual(scene.rows[row]), prompt(scene.rows[row])
    options = {name: getattr(reducer, name) for name in ("image_pivots", "text_pivots", "rule")}
    return dart(alone.states[0], scores, *places, budget, weight=alone.scale, **options)


def check(scene: Scene, reducer: DART) -> None:
    context = scene.context(reducer)
    wanted = [by_the_paper(scene, row, reducer, context.budgets[row]) for row in range(len(scene.rows))]
    assert scene.choice(reducer) == wanted


@pytest.mark.parametrize("rule", ["exact", "paper"])
@pytest.mark.parametrize("keep", [1, 3, 4, 5, 8, 11, 16, 30, 64, 0.111, 0.5, 1.0])
def test_ragged_batch_keeps_what_the_plain_loop_keeps(keep: int | float, rule: str) -> None:
    check(Scene(RAGGED), DART(keep=keep, rule=rule))
    check(Scene(RAGGED, side="right"), DART(keep=keep, rule=rule))


@pytest.mark.parametrize("rule", ["exact", "paper"])
@pytest.mark.parametrize("pivots", [(1, 0), (0, 1), (0, 8), (8, 0), (1, 1), (2, 7), (40, 40)])
def test_any_number_of_pivots(pivots: tuple[int, int], rule: str) -> None:
    scene = Scene((*RAGGED, "v" * 9, "v"))  # the last two have no text: an image token must serve
    check(scene, DART(keep=9, image_pivots=pivots[0], text_pivots=pivots[1], rule=rule))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 25), st.integers(0, 7)), min_size=1, max_size=4),
    keep=st.integers(1, 27),
    pivots=st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(any),
    rule=st.sampled_from(["exact", "paper"]),
)
def test_any_sizes(rows: list[tuple[int, int, int]], keep: int, pivots: tuple[int, int], rule: str) -> None:
    texts = tuple("t" * before + "v" * size + "t" * after for before, size, after in rows)
    check(Scene(texts), DART(keep=keep, image_pivots=pivots[0], text_pivots=pivots[1], rule=rule))


@pytest.mark.parametrize(("keep", "kept"), [(192, 196), (128, 132), (64, 68)])
def test_paper_rule_keeps_image_pivots_in_addition(keep: int, kept: int) -> None:
    scene = Scene(("t" * 5 + "v" * 576 + "t" * 9,))
    assert len(scene.choice(DART(keep=keep, rule="paper"))[0]) == kept
    assert DART(keep=keep, rule="paper").kept_tokens([576]) == kept
    assert len(scene.choice(DART(keep=keep))[0]) == keep


@pytest.mark.parametrize("size", [3, 10, 50])
def test_paper_rule_with_little_text_or_a_small_image(size: int) -> None:
    """Pivots that are not there take nothing; what is not there cannot be kept."""
    scene = Scene(("v" * size + "tt",))
    assert len(scene.choice(DART(keep=16, rule="paper"))[0]) == min(size, 4 + (16 // 8) * (4 + 2))


def test_groups_of_one_sample_select_separately() -> None:
    """Two images under a budget each: the second sees the same text, and none of the first's tokens."""
    reducer = DART(keep=7, per="image")
    row = "t" + "v" * 12 + "t" + "v" * 15 + "tttttt"
    scores = l1_norms(Scene((row,)).heads(3)[0])
    text = [place for place in prompt(row) if place > 28]
    halves = [list(range(1, 13)), list(range(14, 29))]
    texts = [[13, *text], text]  # after each image
    wanted = [
        dart(Scene((row,)).states[0], scores, image, text, 7, weight=Scene((row,)).scale)
        for image, text in zip(halves, texts, strict=True)
    ]
    assert Scene((row,)).choice(reducer)[0] == wanted[0] | wanted[1]


def test_final_norm_weight_changes_the_selection() -> None:
    scene, reducer = Scene(("t" + "v" * 100 + "ttttt",)), DART(keep=40)
    context = scene.context(reducer)
    plain = SelectionContext(context.groups, context.states, None, context.observed, context.budgets)
    assert not torch.equal(reducer.select(context), reducer.select(plain))
    alone = Scene(scene.rows)
    scores = l1_norms(alone.heads(3)[0])
    wanted = dart(alone.states[0], scores, visual(scene.rows[0]), prompt(scene.rows[0]), 40)
    assert {1 + int(place) for place in reducer.select(plain)[0].nonzero()} == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slices_give_the_same_cosines(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Scene(RAGGED, dtype=dtype).context(DART(keep=2))
    positions = torch.arange(8).reshape(4, 2)
    everything = cosine_similarity(context.hidden_at(positions)[:, :, None], context.hidden[:, None], dim=-1)
    real = context.valid[:, None].expand_as(everything)
    gathered = replace(context, pools=replace(context.groups, spans=None))
    norms = context.score("key")
    for length in (1, 4, 100):
        monkeypatch.setattr("dart_train.reduction.context._slice_length", lambda *_, length=length: length)
        context.scores.clear()
        for way in (context, gathered):
            assert torch.allclose(way.cosine(positions)[real], everything[real], atol=1e-6)
        assert torch.allclose(context.score("key"), norms)
