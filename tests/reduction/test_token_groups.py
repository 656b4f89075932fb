"""Pools as dense tensors: there, back, and on to the next stage."""

from __future__ import annotations

import torch

from dart_train.reduction import DART
from dart_train.reduction.base import nearest_kept_index
from dart_train.reduction.kept_tokens import KeptTokens
from dart_train.reduction.token_groups import TokenGroups
from tests.reduction.scenes import Scene

ROWS = ("ttvvvttt", "vvtvtt" + "a" + "tvvtt", "tt", "vvvvvt")
SCENE = Scene(ROWS)


def pools_of(per: str = "sample") -> TokenGroups:
    pools = TokenGroups.of(SCENE.batch(), per)
    assert pools is not None
    return pools


def test_one_row_of_tensors_a_group() -> None:
    pools = pools_of("image")
    assert pools.row_of == (0, 1, 1, 1, 3) and pools.rows.tolist() == [0, 1, 1, 1, 3]
    assert pools.sizes == pools.original == (3, 2, 1, 2, 5)
    assert pools.valid.sum(1).tolist() == [3, 2, 1, 2, 5]
    assert [slots[valid].tolist() for slots, valid in zip(pools.slots, pools.valid, strict=True)] == [
        [6, 7, 8],  # the first row is padded by four
        [0, 1],
        [3],
        [8, 9],
        [6 + place for place in range(5)],
    ]
    assert pools.last.tolist() == [11, 5, 5, 11, 11]
    assert pools.prompt_sizes == (3, 3, 2, 2, 1)
    assert pools.kept_text == (5, 7, 2, 1)
    assert len(set(pools.seed.tolist())) == 5


def test_gather_reads_what_scatter_writes() -> None:
    pools, states = pools_of(), torch.randn(4, 12, 3)
    assert torch.equal(pools.scatter(states, pools.gather(states)), states)
    written = pools.scatter(states, torch.full((len(pools.sizes), pools.slots.shape[1], 3), 7.0))
    visual = SCENE.batch().visual
    assert torch.equal(written[visual], torch.full_like(written[visual], 7.0))
    assert torch.equal(written[~visual], states[~visual])


def test_scatter_passes_gradients_both_ways() -> None:
    pools, states = pools_of(), torch.randn(4, 12, requires_grad=True)
    values = torch.randn(pools.valid.shape, requires_grad=True)
    pools.scatter(states, values).sum().backward()
    assert torch.equal(states.grad, (~SCENE.batch().visual).float())
    assert torch.equal(values.grad, pools.valid.float())


def test_keep_mask_has_all_text_and_the_kept_visual_tokens() -> None:
    pools, batch = pools_of(), SCENE.batch()
    keep = torch.zeros_like(pools.valid)
    keep[:, 1:] = True  # all but the first token of each pool; padding too, which must not count
    mask = pools.keep_mask(batch.real & ~batch.visual, keep)
    text = "".join("x" if kept else "." for kept in mask[1])
    assert text == ".xxxxxx" + "x.xxx"
    assert mask.sum(1).tolist() == pools.row_counts([size - 1 for size in pools.sizes])
    assert not mask[0, :4].any()


def test_the_next_stage_has_the_kept_tokens_in_their_new_places() -> None:
    pools, batch, words = pools_of(), SCENE.batch(), torch.arange(48).view(4, 12)
    keep = pools.valid & (torch.arange(pools.slots.shape[1]) % 2 == 0)
    counts = [2, 2, 1, 3]
    kept = KeptTokens.of(pools.keep_mask(batch.real & ~batch.visual, keep), pools.row_counts(counts))
    later, short = pools.after_reduction(kept, keep, counts), kept.gather(words)
    assert later.sizes == (2, 2, 1, 3) and later.original == pools.original
    assert later.length == kept.length == short.shape[1]
    for pool in range(4):
        before = pools.gather(words)[pool][keep[pool]]
        assert later.gather(short)[pool][later.valid[pool]].tolist() == before.tolist()
        row = pools.row_of[pool]
        texts = words[row][pools.prompt[pool]].tolist()
        assert short[row][later.prompt[pool]].tolist() == texts
        assert short[row, later.last[pool]] == words[row, pools.last[pool]]


def test_nearest_is_nearest_by_cosine_under_the_norm() -> None:
    reducer = DART(keep=2, merge="nearest")
    view = SCENE.view(reducer)
    keep = reducer.select(view)
    found = nearest_kept_index(view, keep, 2)
    states = SCENE.states * SCENE.scale
    for pool, size in enumerate(view.pools.sizes):
        mine = states[view.pools.row_of[pool], view.pools.slots[pool]]
        kept = keep[pool].nonzero().flatten().tolist()
        for token in range(size):
            alike = {other: float(torch.cosine_similarity(mine[token], mine[other], dim=0)) for other in kept}
            wanted = token if token in kept else max(alike, key=lambda other: alike[other])
            assert found[pool, token] == wanted
