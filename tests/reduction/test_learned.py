"""What `learned` keeps: the scorer's share by score, less similar to what scores higher, and DART's for the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dart_train.reduction import DART, Learned, SelectionContext
from dart_train.reduction.base import topk_mask
from tests.reduction.scenes import Scene

SCENE = Scene(("vvvvvvvvvvvvtt", "tvvvvvvvvt"))


def selected(reducer: Learned, scene: Scene = SCENE) -> tuple[torch.Tensor, SelectionContext]:
    context = scene.context(reducer)
    return reducer.select(context), context


def test_without_diversity_and_at_full_share_the_scores_alone_decide() -> None:
    keep, context = selected(Learned(keep=4, share=1.0, diversity=0.0))
    assert context.token_scores is not None
    assert torch.equal(keep, topk_mask(context.token_scores.detach(), context.valid, context.budget))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_rest_of_the_budget_is_darts_without_text_pivots(share: float) -> None:
    keep, context = selected(Learned(keep=4, share=share))
    choice, scored = context.scored_choice, round(4 * share)
    assert choice is not None and choice.kept.sum(1).tolist() == [scored, scored]
    dart = DART(keep=4 - scored, image_pivots=4, text_pivots=0)
    assert torch.equal(keep & ~choice.kept, dart.select(SCENE.context(dart)))
    expected = topk_mask(choice.scores.detach(), choice.candidates, torch.tensor([scored, scored]))
    assert torch.equal(choice.kept, expected) and not (choice.candidates & keep & ~choice.kept).any()


def test_a_duplicate_of_a_token_of_higher_score_is_worth_less() -> None:
    """Two pairs of equal states: with enough diversity one of each pair is kept, and the pairs' others are not."""
    scene = Scene(("vvvvtt",))
    states = scene.states
    states[0, 1], states[0, 3] = states[0, 0], states[0, 2]

    def kept(diversity: float) -> list[int]:
        context: Any = scene.context(Learned(keep=2, share=1.0, diversity=diversity))
        context.scorer = lambda visual, prompt: torch.tensor([[4.0, 3.9, 3.0, 2.9]])
        return Learned(keep=2, share=1.0, diversity=diversity).select(context)[0].nonzero().flatten().tolist()

    assert kept(0.0) == [0, 1] and kept(2.0) == [0, 2]


def test_gradient_of_the_scores_is_the_same_with_diversity() -> None:
    """What a token loses for its similarity does not depend on the scorer's weights."""
    gradients = []
    for diversity in (0.0, 0.5):
        reducer = Learned(keep=4, share=1.0, diversity=diversity)
        context: Any = SCENE.context(reducer)
        reducer.select(context)
        context.scored_choice.scores.sum().backward()
        gradients.append(context.scorer.token[0].weight.grad)
    assert torch.equal(*gradients)
