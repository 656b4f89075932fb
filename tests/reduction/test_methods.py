"""Laws of every method of the registry; a new method is tested as soon as it is registered."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch

from dart_train.reduction import REDUCERS, KeepAll, Observed, Reducer
from dart_train.reduction.kept_tokens import KeptTokens
from dart_train.reduction.token_groups import TokenGroups
from tests.reduction.scenes import Scene

ONE, TWO = "tt" + "v" * 16 + "ttttt", "t" + "v" * 8 + "t" + "v" * 12 + "tttt"
TURNS = "t" + "v" * 10 + "tt" + "a" + "tt" + "v" * 6 + "ttttttt"  # the second image comes after an answer
ROWS = (ONE, TWO, TURNS, "tttt", "v" * 4, "v" * 4 + "t" * 40)
SAMPLES = (16, 20, 16, 0, 4, 4)
IMAGES = ((16,), (8, 12), (10, 6), (), (4,), (4,))

every_method = pytest.mark.parametrize("method", REDUCERS)
both_budgets = pytest.mark.parametrize("per", ["sample", "image"])
SOME_BUDGETS = {(1, "image"), (4, "sample"), (9, "image"), (12, "sample"), (0.5, "image")}  # DART: all


def wanted(reducer: Reducer) -> list[int]:
    """Of each row."""
    if isinstance(reducer, KeepAll):
        return list(SAMPLES)
    sizes = [(size,) for size in SAMPLES] if reducer.per == "sample" else IMAGES
    ratio = isinstance(reducer.keep, float)
    return [int(sum(size * reducer.keep if ratio else min(size, reducer.keep) for size in row)) for row in sizes]


@pytest.mark.parametrize(
    ("method", "keep", "per"),
    [
        (method, keep, per)
        for method in REDUCERS
        for keep in (1, 3, 4, 9, 12, 500, 0.5, 1.0)
        for per in ("sample", "image")
        if method == "dart"
        or (keep, per) in {(1, "image"), (4, "sample"), (9, "image"), (12, "sample"), (0.5, "image")}
    ],
)
def test_budget_is_met_exactly_by_visual_tokens(method: str, keep: int | float, per: str) -> None:
    reducer = REDUCERS[method](keep=keep, per=per)
    chosen = Scene(ROWS).choice(reducer)
    assert list(map(len, chosen)) == wanted(reducer)
    for row, kept in zip(ROWS, chosen, strict=True):
        assert all(row[place] == "v" for place in kept)


@every_method
@both_budgets
def test_counts_are_known_before_the_selection(method: str, per: str) -> None:
    reducer = REDUCERS[method](keep=5, per=per)
    context = Scene(ROWS).context(reducer)
    keep = reducer.select(context)
    assert keep.dtype == torch.bool and not (keep & ~context.valid).any()
    assert keep.sum(1).tolist() == reducer.counts(context.groups)
    assert reducer.kept_tokens(IMAGES[1]) == sum(reducer.counts(TokenGroups.of(Scene((TWO,)).batch(), per)))


@every_method
def test_text_is_never_dropped(method: str) -> None:
    reducer, scene = REDUCERS[method](keep=2), Scene(ROWS)
    context, batch = scene.context(reducer), scene.batch()
    kept_mask = context.groups.keep_mask(batch.real & ~batch.visual, reducer.select(context))
    assert torch.equal(kept_mask & ~batch.visual, batch.real & ~batch.visual)
    assert kept_mask.sum(1).tolist() == context.groups.row_counts(reducer.counts(context.groups))


@every_method
@both_budgets
def test_selection_does_not_depend_on_batch_or_padding(method: str, per: str) -> None:
    reducer, scene = REDUCERS[method](keep=5, per=per), Scene(ROWS)
    chosen = scene.choice(reducer)
    assert scene.choice(reducer) == chosen
    assert replace(scene, side="right").choice(reducer) == chosen
    for row, text in enumerate(ROWS):
        if "v" in text:
            assert scene.alone(row).choice(reducer) == [chosen[row]]


@every_method
def test_bfloat16_states_are_accepted(method: str) -> None:
    reducer = REDUCERS[method](keep=5, merge="nearest")
    scene = Scene(ROWS, dtype=torch.bfloat16)
    context = scene.context(reducer)
    keep = reducer.select(context)
    assert keep.sum(1).tolist() == reducer.counts(context.groups)
    assert torch.equal(keep, reducer.select(scene.context(reducer)))
    reducer.merge_targets(context, keep)


@every_method
def test_only_required_inputs_are_used(method: str) -> None:
    """The engine records more than a method requires where several stages differ: the selection is the same."""
    reducer, scene = REDUCERS[method](keep=5), Scene(ROWS)
    context, needs = scene.context(reducer), reducer.required_inputs()
    assert needs <= {"keys", "values", "attention", "grid", "scorer"}
    observed = Observed(
        context.observed.keys if "keys" in needs else torch.full((6, 1, scene.length, 1), torch.nan),
        context.observed.values if "values" in needs else torch.full((6, 1, scene.length, 1), torch.nan),
        context.observed.attention if "attention" in needs else torch.full((6, scene.length), torch.nan),
    )
    assert torch.equal(reducer.select(replace(context, seen=observed)), reducer.select(context))


@every_method
@pytest.mark.parametrize("merge", ["none", "nearest"])
def test_selection_reads_nothing_back_from_the_device(method: str, merge: Literal["none", "nearest"]) -> None:
    """On the meta device there is nothing to read: an `item`, a `tolist`, a boolean index would raise."""
    reducer = REDUCERS[method](keep=5, merge=merge)
    context, meta = Scene(ROWS).context(reducer), torch.device("meta")
    observed = (context.observed.keys, context.observed.values, context.observed.attention)
    context = replace(
        context,
        pools=context.groups.to(meta),
        states=context.states.to(meta),
        scale=Scene(ROWS).scale.to(meta),
        seen=Observed(*(None if x is None else x.to(meta) for x in observed)),
        scorer=None if context.scorer is None else context.scorer.to(meta),
    )
    keep, counts = reducer.select(context), reducer.counts(context.groups)
    reducer.merge_targets(context, keep)
    text = torch.ones(context.states.shape[:2], dtype=torch.bool, device=meta)
    kept = KeptTokens.of(context.groups.keep_mask(text, keep), context.groups.row_counts(counts))
    later = context.groups.after_reduction(kept, keep, counts)
    assert later.slots.device == keep.device == kept.expand(kept.gather(context.states)).device == meta
