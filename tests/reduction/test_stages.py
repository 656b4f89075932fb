"""Every method after every other method, and where the content of dropped tokens goes."""

from __future__ import annotations

import pytest
import torch

from dart_train.reduction import REDUCERS, Observed, SelectionContext
from dart_train.reduction.kept_tokens import KeptTokens
from tests.reduction.scenes import Scene, scorer_of
from tests.reduction.test_methods import ROWS, both_budgets, every_method

NAMES = list(REDUCERS)
# Each method first with two others after it, and each second after two others.
PAIRS = [(name, NAMES[(i + step) % len(NAMES)]) for i, name in enumerate(NAMES) for step in (1, 4)]


@both_budgets
@pytest.mark.parametrize(("method", "second"), PAIRS)
def test_second_stage_keeps_some_of_the_first(method: str, second: str, per: str) -> None:
    first, later = REDUCERS[method](keep=0.5, per=per), REDUCERS[second](keep=3, per=per)
    scene = Scene(ROWS)
    context, batch = scene.context(first), scene.batch()
    keep = first.select(context)
    counts = first.counts(context.groups)
    kept_mask = context.groups.keep_mask(batch.real & ~batch.visual, keep)
    kept = KeptTokens.of(kept_mask, context.groups.row_counts(counts))
    groups = context.groups.after_reduction(kept, keep, counts)
    attention = torch.rand(len(groups.sizes), kept.length)
    observed = Observed(kept.gather(scene.heads(3), 2), attention=attention)
    shapes = [[(1, size)] for size in groups.original]
    short = SelectionContext(
        groups, kept.gather(scene.states), scene.scale, observed, later.budgets(groups), shapes, scorer=scorer_of(later)
    )
    chosen = later.select(short)
    assert chosen.sum(1).tolist() == later.counts(groups)
    real = kept.valid & ~kept.gather(batch.visual)
    both = kept.compose(KeptTokens.of(groups.keep_mask(real, chosen), groups.row_counts(later.counts(groups))))
    assert not (both.mask() & ~kept_mask).any()
    assert torch.equal(both.mask() & ~batch.visual, batch.real & ~batch.visual)


@every_method
def test_merged_content_goes_to_a_kept_token(method: str) -> None:
    reducer, scene = REDUCERS[method](keep=3, merge="nearest"), Scene(ROWS)
    context = scene.context(reducer)
    keep = reducer.select(context)
    into = reducer.merge_targets(context, keep)
    if into is None:  # keep-all: nothing was dropped
        assert torch.equal(keep, context.valid)
        return
    assert keep.gather(1, into)[context.valid].all()
    assert torch.equal(into.gather(1, into)[context.valid], into[context.valid])  # a kept token keeps its own
