"""Every method after every other, and what becomes of dropped tokens' content."""

from __future__ import annotations

import pytest
import torch

from dart_train.reduction import REDUCERS, Observed, View
from dart_train.reduction.kept_tokens import KeptTokens
from tests.reduction.scenes import Scene, scorer_of
from tests.reduction.test_methods import ROWS, both_budgets, every_method

NAMES = list(REDUCERS)
# Each method first with two others after it, and each second after two others.
PAIRS = [(name, NAMES[(i + step) % len(NAMES)]) for i, name in enumerate(NAMES) for step in (1, 4)]


@both_budgets
@pytest.mark.parametrize(("method", "second"), PAIRS)
def test_a_second_stage_keeps_some_of_the_first(method: str, second: str, per: str) -> None:
    first, later = REDUCERS[method](keep=0.5, per=per), REDUCERS[second](keep=3, per=per)
    scene = Scene(ROWS)
    view, batch = scene.view(first), scene.batch()
    keep = first.select(view)
    counts = first.counts(view.pools)
    goes_on = view.pools.keep_mask(batch.real & ~batch.visual, keep)
    kept = KeptTokens.of(goes_on, view.pools.row_counts(counts))
    pools = view.pools.after_reduction(kept, keep, counts)
    attention = torch.rand(len(pools.sizes), kept.length)
    seen = Observed(kept.gather(scene.heads(3), 2), attention=attention)
    shapes = [[(1, size)] for size in pools.original]
    short = View(
        pools, kept.gather(scene.states), scene.scale, seen, later.budgets(pools), shapes, scorer=scorer_of(later)
    )
    chosen = later.select(short)
    assert chosen.sum(1).tolist() == later.counts(pools)
    real = kept.valid & ~kept.gather(batch.visual)
    both = kept.compose(KeptTokens.of(pools.keep_mask(real, chosen), pools.row_counts(later.counts(pools))))
    assert not (both.mask() & ~goes_on).any()
    assert torch.equal(both.mask() & ~batch.visual, batch.real & ~batch.visual)


@every_method
def test_merged_content_goes_to_a_kept_token(method: str) -> None:
    reducer, scene = REDUCERS[method](keep=3, merge="nearest"), Scene(ROWS)
    view = scene.view(reducer)
    keep = reducer.select(view)
    into = reducer.merge_targets(view, keep)
    if into is None:  # keep-all: nothing was dropped
        assert torch.equal(keep, view.valid)
        return
    assert keep.gather(1, into)[view.valid].all()
    assert torch.equal(into.gather(1, into)[view.valid], into[view.valid])  # a kept token keeps its own
