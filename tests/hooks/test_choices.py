"""Forwards that share one choice keep the same tokens, whatever they would have chosen themselves."""

from __future__ import annotations

import pytest
import torch

from dart_train import DART, Random, attach
from dart_train.hooks.choices import RowChoices, SharedChoice
from tests.laws.cases import batch_of
from tests.zoo import FAMILIES

STAGES = [
    [DART(keep=0.3)],
    [DART(keep=0.5, layer=1), Random(keep=0.25, layer=3)],
    [DART(keep=0.4, layer=1, merge="nearest")],
]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("stages", STAGES, ids=["dart", "two-stages", "merged"])
def test_second_forward_keeps_what_the_first_kept(family: str, stages: list[DART]) -> None:
    """With other weights before the reduction it would choose otherwise."""
    model, batch = FAMILIES[family].model().eval(), batch_of(family, labels=True)
    with attach(model, stages) as attached, torch.no_grad():
        model(**batch)
        first = attached.choices
        assert first is not None
        for parameter in attached._engine.parts.layers[0].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        shared = SharedChoice(first)
        with attached.one_choice(shared):
            model(**batch)
        assert attached.choices is not None and attached.choices.differing(first) == 0
        assert (shared.rows, shared.differing) == (int((first.visual > 0).sum()), 0)
        counting = SharedChoice(first, enforced=False)
        with attached.one_choice(counting):
            model(**batch)
        assert counting.differing == attached.choices.differing(first) > 0


def test_shared_choice_of_the_own_weights_changes_nothing() -> None:
    model, batch = FAMILIES["llava"].model().eval(), batch_of("llava", labels=True)
    with attach(model, DART(keep=0.3)) as attached, torch.no_grad():
        alone = model(**batch).loss
        with attached.one_choice(SharedChoice(attached.choices)):
            assert torch.equal(model(**batch).loss, alone)


def test_choice_does_not_depend_on_padding() -> None:
    visual = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    kept = visual & torch.tensor([[0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0]], dtype=torch.bool)
    choices = RowChoices.of(visual, [kept])
    padded = torch.nn.functional.pad(visual, (2, 3))
    assert torch.equal(choices.masks(padded)[:, 0], torch.nn.functional.pad(kept, (2, 3)))
    assert RowChoices.of(padded, [torch.nn.functional.pad(kept, (2, 3))]).differing(choices) == 0
    with pytest.raises(ValueError, match="not those that the choice was made for"):
        choices.masks(~visual)


def test_rows_are_taken_in_order_and_again_from_the_first() -> None:
    visual = torch.ones(3, 2, dtype=torch.bool)
    kept = torch.tensor([[1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    shared = SharedChoice(RowChoices.of(visual, [kept]))
    for _ in range(2):
        taken = [shared.take(2), shared.take(1)]
        assert torch.equal(torch.cat([each.kept[:, 0] for each in taken if each is not None]), kept)
