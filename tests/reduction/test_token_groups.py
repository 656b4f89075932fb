"""Groups as dense tensors: gather, scatter, and the groups of the next stage."""

from __future__ import annotations

import torch

from dart_train.reduction import DART
from dart_train.reduction.base import nearest_kept_index
from dart_train.reduction.kept_tokens import KeptTokens
from dart_train.reduction.token_groups import TokenGroups
from tests.reduction.scenes import Scene

ROWS = ("ttvvvttt", "vvtvtt" + "a" + "tvvtt", "tt", "vvvvvt")
SCENE = Scene(ROWS)


def groups_of(per: str = "sample") -> TokenGroups:
    groups = TokenGroups.of(SCENE.batch(), per)
    assert groups is not None
    return groups


def test_one_row_of_tensors_a_group() -> None:
    groups = groups_of("image")
    assert groups.row_of == (0, 1, 1, 1, 3) and groups.rows.tolist() == [0, 1, 1, 1, 3]
    assert groups.sizes == groups.original == (3, 2, 1, 2, 5)
    assert groups.valid.sum(1).tolist() == [3, 2, 1, 2, 5]
    assert [slots[valid].tolist() for slots, valid in zip(groups.slots, groups.valid, strict=True)] == [
        [6, 7, 8],  # the first row is padded by four
        [0, 1],
        [3],
        [8, 9],
        [6 + place for place in range(5)],
    ]
    assert groups.last.tolist() == [11, 5, 5, 11, 11]
    assert groups.prompt_sizes == (3, 3, 2, 2, 1)
    assert groups.kept_text == (5, 7, 2, 1)
    assert len(set(groups.seed.tolist())) == 5


def test_gather_reads_what_scatter_writes() -> None:
    groups, states = groups_of(), torch.randn(4, 12, 3)
    assert torch.equal(groups.scatter(states, groups.gather(states)), states)
    written = groups.scatter(states, torch.full((len(groups.sizes), groups.slots.shape[1], 3), 7.0))
    visual = SCENE.batch().visual
    assert torch.equal(written[visual], torch.full_like(written[visual], 7.0))
    assert torch.equal(written[~visual], states[~visual])


def test_scatter_passes_gradients_both_ways() -> None:
    groups, states = groups_of(), torch.randn(4, 12, requires_grad=True)
    values = torch.randn(groups.valid.shape, requires_grad=True)
    groups.scatter(states, values).sum().backward()
    assert torch.equal(states.grad, (~SCENE.batch().visual).float())
    assert torch.equal(values.grad, groups.valid.float())


def test_keep_mask_has_all_text_and_the_kept_visual_tokens() -> None:
    groups, batch = groups_of(), SCENE.batch()
    keep = torch.zeros_like(groups.valid)
    keep[:, 1:] = True  # all but the first token of each group; padding too, which must not count
    mask = groups.keep_mask(batch.real & ~batch.visual, keep)
    text = "".join("x" if kept else "." for kept in mask[1])
    assert text == ".xxxxxx" + "x.xxx"
    assert mask.sum(1).tolist() == groups.row_counts([size - 1 for size in groups.sizes])
    assert not mask[0, :4].any()


def test_next_stage_has_the_kept_tokens_in_their_new_places() -> None:
    groups, batch, words = groups_of(), SCENE.batch(), torch.arange(48).view(4, 12)
    keep = groups.valid & (torch.arange(groups.slots.shape[1]) % 2 == 0)
    counts = [2, 2, 1, 3]
    kept = KeptTokens.of(groups.keep_mask(batch.real & ~batch.visual, keep), groups.row_counts(counts))
    later, short = groups.after_reduction(kept, keep, counts), kept.gather(words)
    assert later.sizes == (2, 2, 1, 3) and later.original == groups.original
    assert later.length == kept.length == short.shape[1]
    for group in range(4):
        before = groups.gather(words)[group][keep[group]]
        assert later.gather(short)[group][later.valid[group]].tolist() == before.tolist()
        row = groups.row_of[group]
        texts = words[row][groups.prompt[group]].tolist()
        assert short[row][later.prompt[group]].tolist() == texts
        assert short[row, later.last[group]] == words[row, groups.last[group]]


def test_nearest_is_nearest_by_cosine_under_the_norm() -> None:
    reducer = DART(keep=2, merge="nearest")
    context = SCENE.context(reducer)
    keep = reducer.select(context)
    found = nearest_kept_index(context, keep, 2)
    states = SCENE.states * SCENE.scale
    for group, size in enumerate(context.groups.sizes):
        mine = states[context.groups.row_of[group], context.groups.slots[group]]
        kept = keep[group].nonzero().flatten().tolist()
        for token in range(size):
            alike = {other: float(torch.cosine_similarity(mine[token], mine[other], dim=0)) for other in kept}
            wanted = token if token in kept else max(alike, key=lambda other: alike[other])
            assert found[group, token] == wanted
