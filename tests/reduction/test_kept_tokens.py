"""The kept positions, and tensors gathered at them and expanded again."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dart_train.reduction.kept_tokens import KeptTokens

KEEP = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 1], [1, 1, 1, 1, 0, 0]]).bool()


def of(keep: Tensor) -> KeptTokens:
    return KeptTokens.of(keep, keep.sum(1).tolist())


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """[B, L] bool with something kept in each row."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    kept = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return torch.tensor(draw(st.lists(kept, min_size=rows, max_size=rows)))


@settings(max_examples=60, deadline=None)
@given(masks())
def test_kept_places_stay_in_order_and_padding_is_on_the_left(keep: Tensor) -> None:
    kept = of(keep)
    assert kept.length == keep.sum(1).max()
    for row in range(len(keep)):
        places = keep[row].nonzero().flatten().tolist()
        assert kept.index[row][kept.valid[row]].tolist() == places
        assert kept.valid[row].tolist() == [slot >= kept.length - len(places) for slot in range(kept.length)]
    assert kept.ragged == (not kept.valid.all())
    assert torch.equal(kept.mask(), keep)


def test_keeping_everything_moves_nothing() -> None:
    x, kept = torch.randn(3, 6, 4), of(torch.ones(3, 6).bool())
    assert kept.keeps_all and not kept.ragged and kept.length == 6 and bool(kept.mask().all())
    assert kept.gather(x) is x and kept.expand(x) is x
    part = of(KEEP)
    assert not part.keeps_all and kept.compose(part).index.tolist() == part.index.tolist()
    assert part.compose(of(torch.ones(3, part.length).bool())) is part


def test_gather_along_any_axis_with_the_batch_anywhere() -> None:
    kept = of(KEEP)
    numbers = torch.randn(3, 6, 2, 6)
    for row, (index, valid) in enumerate(zip(kept.index, kept.valid, strict=True)):
        places = index[valid]
        assert torch.equal(kept.gather(numbers)[row, valid], numbers[row, places])
        assert torch.equal(kept.gather(numbers, 3)[row][..., valid], numbers[row][..., places])
        assert torch.equal(kept.gather(numbers, -1)[row][..., valid], numbers[row][..., places])
        three = kept.gather(torch.stack([numbers] * 3), -3, batch=1)  # such as rotary embeddings [3, B, L, ...]
        assert torch.equal(three[2, row, valid], numbers[row, places])


def test_one_row_for_all_samples_is_gathered_for_each() -> None:
    shared = torch.arange(6.0).view(1, 6, 1)
    gathered = of(KEEP).gather(shared)
    assert gathered.shape == (3, 4, 1)
    assert gathered[0].flatten().tolist() == [0, 2, 3, 5]
    assert gathered[1, 2:].flatten().tolist() == [3, 5]


@settings(max_examples=60, deadline=None)
@given(masks(), st.data())
def test_two_stages_are_one(first: Tensor, data: st.DataObject) -> None:
    kept = of(first)
    second = kept.valid & torch.tensor(
        [data.draw(st.lists(st.booleans(), min_size=kept.length, max_size=kept.length)) for _ in first]
    )
    second[:, -1] = True  # the last slot is never padding
    both = kept.compose(of(second))
    numbers = torch.arange(first.numel()).view(first.shape)
    assert both.source_length == first.shape[1]
    assert torch.equal(both.gather(numbers), of(second).gather(kept.gather(numbers)))
    for row in range(len(first)):
        assert numbers[row][both.mask()[row]].tolist() == kept.gather(numbers)[row][second[row]].tolist()
    assert both.ragged == (not both.valid.all())


def test_expand_repeats_the_last_kept_one_in_dropped_places() -> None:
    kept = of(KEEP)
    letters = torch.arange(6).expand(3, 6)
    full = kept.expand(kept.gather(letters)[..., None].expand(-1, -1, 2))
    assert full.shape == (3, 6, 2)
    assert full[0, :, 0].tolist() == [0, 0, 2, 3, 3, 5]
    assert full[1, 3:, 1].tolist() == [3, 3, 5]  # before its first kept token there is nothing to repeat
    assert full[2, :, 0].tolist() == [0, 1, 2, 3, 3, 3]


@settings(max_examples=40, deadline=None)
@given(masks())
def test_expand_then_gather_gives_back_the_short_one(keep: Tensor) -> None:
    kept = of(keep)
    short = torch.randn(len(keep), kept.length, 3)
    again = kept.gather(kept.expand(short))
    assert torch.equal(again[kept.valid], short[kept.valid])


def test_gradients_reach_what_was_kept_and_nothing_else() -> None:
    kept, states = of(KEEP), torch.randn(3, 6, 2, requires_grad=True)
    kept.gather(states)[kept.valid].sum().backward()
    assert torch.equal(states.grad, KEEP[..., None].expand(3, 6, 2).float())


def test_keeping_all_is_no_change() -> None:
    kept, numbers = of(torch.ones(2, 5).bool()), torch.randn(2, 5, 3)
    assert not kept.ragged
    assert torch.equal(kept.gather(numbers), numbers) and torch.equal(kept.expand(numbers), numbers)
