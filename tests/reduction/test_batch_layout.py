"""Where the visual tokens are, and which text may select: what a prefill contains, and no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dart_train.reduction.batch_layout import BatchLayout
from dart_train.reduction.token_groups import TokenGroups
from tests.reduction.scenes import IMAGE, PADDING, Scene


def candidates(batch: BatchLayout, per: str = "sample") -> list[str]:
    """Of each group: `P` a pivot candidate, `v` its own token, `L` the last prompt token, `.` anything else."""
    out = []
    for group in batch.groups(per):
        letters = ["P" if may else "." for may in batch.prompt_of(group)]
        for place in group.positions().tolist():
            letters[place] = "v"
        last = batch.last_of(group)
        letters[last] = {"P": "L", "v": "V"}.get(letters[last], "l")
        out.append("".join(letters))
    return out


@pytest.mark.parametrize(
    ("row", "groups"),
    [
        ("tvvvttt", [".vvvPPL"]),
        ("tvvvttaaa", [".vvvPL..."]),  # answers do not select
        ("tvvvttaatta", [".vvvPL....."]),  # nor what comes after it
        ("tvv__tt_", [".vv..PL."]),  # nor padding, wherever it is
        ("tvvtvvtt", [".vv.vvPL"]),  # text between two images did not see the second
        ("tvvtvv", [".vvPvV"]),  # unless there is none after it
        ("ttvv", ["PPvV"]),  # nor after the first: then all text
        ("vvv", ["vvV"]),
        ("vvvaa", ["vvV.."]),
        ("tvvttaattvvvtta", [".vvPL..........", ".........vvvPL."]),  # a later turn: a group of its own
        ("tvvttavvaatvvt", [".vvPL.........", "P..PP.vV......", "...........vvL"]),
    ],
)
def test_text_after_the_image_and_before_the_answer_is_the_prompt(row: str, groups: list[str]) -> None:
    assert candidates(Scene((row,)).batch()) == groups


def test_each_image_has_the_text_after_it() -> None:
    assert candidates(Scene(("tvvtvvtt",)).batch(), "image") == [".vvP..PL", "....vvPL"]


def test_rows_without_images_have_no_group() -> None:
    batch = Scene(("ttt", "vt", "tat")).batch()
    assert [group.row for group in batch.groups("sample")] == [1]
    assert TokenGroups.of(Scene(("ttt", "t")).batch(), "sample") is None


prompts = st.lists(st.sampled_from("vvtt"), min_size=1, max_size=8).map("".join)


@settings(max_examples=60, deadline=None)
@given(before=prompts, after=prompts, answer=st.integers(1, 6), seed=st.integers(0, 9))
def test_another_answer_gives_the_same_groups(before: str, after: str, answer: int, seed: int) -> None:
    """Longer, other words, or a further turn: what the first images attend to does not change."""
    plain = Scene((before + "v" + after,), (seed,)).batch()
    longer = Scene((before + "v" + after + "a" * answer + "tvt",), (seed,), side="right").batch()
    mine, (other, *_) = plain.groups("sample"), longer.groups("sample")
    assert mine == [other]
    size = plain.shape[1]
    assert torch.equal(plain.prompt_of(mine[0]), longer.prompt_of(other)[:size])
    assert not longer.prompt_of(other)[size:].any()
    assert plain.last_of(mine[0]) == longer.last_of(other)


def test_fingerprint_depends_on_the_prompt_only() -> None:
    ids = torch.tensor([[7, IMAGE, 8, 9], [7, IMAGE, 8, 5], [7, IMAGE, 6, 9], [IMAGE, 7, 8, 9]])
    labels = torch.tensor([[-100, -100, -100, 9]] * 4)
    first, same, word, order = BatchLayout.of(ids, [IMAGE], labels=labels).fingerprint.tolist()
    assert first == same and len({first, word, order}) == 3
    assert BatchLayout.of(ids[:1, :3], [IMAGE]).fingerprint.tolist() == [first]


@pytest.mark.parametrize("left", [0, 3])
def test_left_padding_shifts_positions_only(left: int) -> None:
    ids = torch.tensor([[PADDING] * left + [7, IMAGE, IMAGE, 8, 9] + [PADDING] * (3 - left)])
    batch = BatchLayout.of(ids, [IMAGE], mask=(ids != PADDING).long())
    assert batch.left_padded() == (left > 0)
    assert batch.images == ((((left + 1, left + 3),),),)
    assert candidates(batch) == ["." * left + ".vvPL" + "." * (3 - left)]
    assert torch.equal(batch.fingerprint, BatchLayout.of(ids[:, left : left + 5], [IMAGE]).fingerprint)


def test_in_generation_only_the_prompt_counts() -> None:
    """Recomputation without a cache: the words generated so far, even image tokens, neither choose nor go."""
    ids = torch.tensor([[7, IMAGE, IMAGE, 8, 9, 5, IMAGE, 6]])
    batch, prompt = BatchLayout.of(ids, [IMAGE], prompt_length=5), BatchLayout.of(ids[:, :5], [IMAGE])
    assert candidates(batch) == [".vvPL..."]
    assert torch.equal(batch.fingerprint, prompt.fingerprint)
    assert batch.visual.sum() == 2


def test_videos_count_as_images() -> None:
    assert BatchLayout.of(torch.tensor([[7, 1, 2, 8, 2]]), [1, 2]).images == ((((1, 3),), ((4, 5),)),)


def images(*rows: str) -> BatchLayout:
    return Scene(rows).batch()


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ([3, 2, 4], [[(1, 4), (4, 6)], [(2, 6)]]),  # adjacent images are cut by their sizes
        ([5, 4], [[(1, 6)], [(2, 6)]]),
        ([3, 2, 1, 1, 2], [[(1, 4), (4, 6)], [(2, 3), (3, 4), (4, 6)]]),
    ],
)
def test_adjacent_images_are_cut_by_their_sizes(sizes: list[int], found: list[list[Tensor]]) -> None:
    batch = images("tvvvvv", "vvvv").with_images(sizes)
    assert [[span for (span,) in row] for row in batch.images] == found
    assert [group.spans for group in batch.groups("image")] == [(span,) for row in found for span in row]
    assert [group.spans for group in batch.groups("sample")] == [((1, 6),), ((2, 6),)]


def test_image_with_text_within_it_is_one_image() -> None:
    batch = images("vvtvvtvvvtt").with_images([4, 2, 1])
    first, second, third = ((0, 2), (3, 5)), ((6, 8),), ((8, 9),)
    assert batch.images == ((first, second, third),)
    assert [group.spans for group in batch.groups("image")] == [first, second, third]
    assert [group.spans for group in batch.groups("sample")] == [((0, 2), (3, 5), (6, 9))]
    assert candidates(batch, "image")[0] == "vv.vvP...PL"


def test_image_does_not_continue_in_the_next_row() -> None:
    with pytest.raises(ValueError, match="lacks 2 of its visual tokens"):
        images("vvt", "vvt").with_images([4])


def test_supervised_padding_is_not_supervised() -> None:
    scene = Scene(("vvtta__",))
    batch = BatchLayout.of(scene.ids, [IMAGE], scene.mask, replace(scene, rows=("vvttaaa",)).labels)
    assert batch.supervised.tolist() == [[False] * 4 + [True] + [False] * 2]
