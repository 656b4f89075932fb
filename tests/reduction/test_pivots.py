"""Which tokens can be pivots: every score that selects them, and the text that is allowed."""

from __future__ import annotations

import pytest
import torch

from dart_train.reduction import DART, Observed, SelectionContext
from dart_train.reduction.methods.dart import PIVOTS
from tests.fixtures.reference_selection import dart, l1_norms
from tests.reduction.scenes import WIDTH, Scene, prompt, visual

ROWS = ("tt" + "v" * 25 + "tttttttt", "t" + "v" * 14 + "ttttt" + "aaa", "v" * 9 + "ttt")


def scores_of(pivot: str, scene: Scene, context: SelectionContext, row: int) -> list[float]:
    """The highest are the pivots. One group a row."""
    kind, _, side = pivot.partition("_")
    alone, start, size = scene.alone(row), scene.start(row), len(scene.rows[row])
    if kind in ("key", "value"):
        found = l1_norms(alone.heads({"key": 3, "value": 4}[kind])[0])
    else:
        found = context.score(kind)[row, start : start + size].tolist()
    return [-score for score in found] if side == "min" else found


@pytest.mark.parametrize("rule", ["exact", "paper"])
@pytest.mark.parametrize("pivot", PIVOTS)
def test_every_pivot_kind_keeps_what_the_plain_loop_keeps(pivot: str, rule: str) -> None:
    scene, reducer = Scene(ROWS), DART(keep=12, pivot=pivot, rule=rule)
    context = scene.context(reducer)
    wanted = [
        dart(
            scene.alone(row).states[0],
            scores_of(pivot, scene, context, row),
            visual(text),
            prompt(text),
            context.budgets[row],
            weight=scene.scale,
            rule=rule,
        )
        for row, text in enumerate(ROWS)
    ]
    assert scene.choice(reducer) == wanted


def test_pivot_kinds_select_differently() -> None:
    choices = [Scene(ROWS).choice(DART(keep=8, pivot=pivot)) for pivot in PIVOTS]
    assert all(a != b for place, a in enumerate(choices) for b in choices[:place])


def test_pivot_norms_sum_over_all_heads() -> None:
    """Head 0 alone would choose the first token; the sum over heads the last."""
    scene, reducer = Scene(("v" * 6 + "t",)), DART(keep=1, image_pivots=1, text_pivots=0)
    context = scene.context(reducer)
    keys = torch.zeros(1, 2, 7, 4)
    keys[0, 0, 0] = 3.0
    keys[0, :, 5] = torch.tensor([[-2.0], [2.0]])
    context = SelectionContext(context.groups, context.states, None, Observed(keys=keys), context.budgets)
    assert reducer.select(context).tolist() == [[False] * 5 + [True]]


def test_before_the_language_model_embeddings_serve_as_keys() -> None:
    scene, reducer = Scene(ROWS), DART(keep=9, layer=0)
    context = scene.context(reducer)
    context = SelectionContext(context.groups, context.states, context.scale, Observed(), context.budgets)
    keep = reducer.select(context)
    for row, text in enumerate(ROWS):
        states = scene.alone(row).states[0]
        norms = l1_norms(states[None])
        wanted = dart(states, norms, visual(text), prompt(text), 9, weight=scene.scale)
        kept = context.groups.slots[row][keep[row]] - scene.start(row)
        assert set(kept.tolist()) == wanted


def test_attention_pivots_need_a_layer_to_come_from() -> None:
    context = Scene(ROWS).context(DART(keep=9))
    with pytest.raises(ValueError, match="layer >= 1"):
        DART(keep=9, pivot="attention_max").select(context)


def test_norms_are_summed_in_float32() -> None:
    """576 norms of bfloat16 keys, close together: in bfloat16 they would take a few dozen values."""
    heads = (1 + 0.05 * torch.randn(1, 8, 577, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    scene = Scene(("v" * 576 + "t",))
    context = scene.context(DART(keep=64))
    context = SelectionContext(context.groups, context.states, None, Observed(keys=heads), context.budgets)
    exact = heads.double().abs().sum((1, 3))
    found = context.score("key")
    assert torch.allclose(found.double(), exact, rtol=1e-6)
    assert len(found.unique()) > 400 > 50 > len(exact.bfloat16().unique())


@pytest.mark.parametrize("text_after", ["ta", "tatttt", "t"])
def test_answers_are_not_pivots(text_after: str) -> None:
    """The only text that may choose is the one token before the answer, however loud the rest."""
    scene = Scene(("v" * 20 + text_after,))
    reducer = DART(keep=10, image_pivots=0)
    context = scene.context(reducer)
    heads = scene.heads(3).clone()
    heads[:, :, 21:] *= 100
    loud = SelectionContext(context.groups, context.states, context.scale, Observed(keys=heads), context.budgets)
    wanted = dart(context.states[0], l1_norms(heads[0]), range(20), [20], 10, weight=context.scale, image_pivots=0)
    assert set(reducer.select(loud)[0].nonzero().flatten().tolist()) == wanted


def test_tie_goes_to_the_earlier_token_in_any_batch() -> None:
    """A plain background: many tokens are the same. What is kept does not depend on the other rows."""
    scene = Scene(("v" * 40 + "ttttt",))
    reducer = DART(keep=16)
    for other in ("v" * 300 + "ttttt", "v" + "t"):
        both = Scene((scene.rows[0], other))
        context = both.context(reducer)
        flat = torch.ones(2, both.length, WIDTH)
        keys = torch.ones(2, 1, both.length, 4)
        keep = reducer.select(SelectionContext(context.groups, flat, None, Observed(keys=keys), context.budgets))
        assert keep[0].nonzero().flatten().tolist() == list(range(16))
