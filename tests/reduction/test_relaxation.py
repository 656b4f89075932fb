"""The relaxed top-k: the same numbers as the selection, with a gradient in the scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dart_train.reduction.base import topk_mask
from dart_train.reduction.context import ScoredChoice
from dart_train.reduction.relaxation import relaxed_states, straight_through
from dart_train.reduction.schedule import geometric

ROWS, TOKENS, WIDTH, KEPT = 2, 7, 5, 3


def scene(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """States [R, N, D], scores [R, N] and the weights [R, N, D] of a loss that is linear in the states."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(ROWS, TOKENS, WIDTH, generator=generator, dtype=dtype)
    scores = torch.randn(ROWS, TOKENS, generator=generator)
    return states, scores, torch.randn(ROWS, TOKENS, WIDTH, generator=generator, dtype=dtype)


def choice_of(scores: Tensor, kept: int = KEPT, candidates: Tensor | None = None) -> ScoredChoice:
    candidates = torch.ones(scores.shape, dtype=torch.bool) if candidates is None else candidates
    return ScoredChoice(scores, candidates, topk_mask(scores.detach(), candidates, torch.full((ROWS,), kept)))


def mixture(states: Tensor, choice: ScoredChoice, row: int, slot: int, temperature: float) -> Tensor:
    """[D], as a plain softmax over one kept token and the dropped candidates."""
    dropped = choice.candidates[row] & ~choice.kept[row]
    among = torch.tensor([slot, *dropped.nonzero().flatten().tolist()])
    return torch.softmax(choice.scores[row, among] / temperature, 0) @ states[row, among]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_states_are_a_softmax_of_a_kept_token_and_the_dropped_ones(temperature: float) -> None:
    states, scores, _ = scene()
    candidates = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    candidates[0, 2] = False
    choice = choice_of(scores, candidates=candidates)
    found = relaxed_states(states, choice, temperature)
    for row, slot in choice.kept.nonzero().tolist():
        torch.testing.assert_close(found[row, slot], mixture(states, choice, row, slot, temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_exactly_the_selection(dtype: torch.dtype) -> None:
    states, scores, _ = scene(dtype=dtype)
    assert torch.equal(straight_through(states, choice_of(scores.requires_grad_()), 0.3), states)


def test_the_lower_the_temperature_the_closer_to_the_hard_choice() -> None:
    states, scores, _ = scene()
    choice = choice_of(scores)
    distance = [
        (relaxed_states(states, choice, temperature) - states)[choice.kept].norm().item()
        for temperature in (1.0, 0.3, 0.1, 0.03, 0.001)
    ]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-4 < distance[0]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_gradient_agrees_with_finite_differences_of_the_relaxed_objective(weight: float) -> None:
    states, scores, linear = scene()
    choice = choice_of(scores.requires_grad_())
    (straight_through(states, choice, 0.5, weight) * linear)[choice.kept].sum().backward()
    assert scores.grad is not None

    def objective(moved: Tensor) -> Tensor:
        fixed = ScoredChoice(moved, choice.candidates, choice.kept)
        return (relaxed_states(states.double(), fixed, 0.5) * linear)[choice.kept].sum()

    step = 1e-2
    for row in range(ROWS):
        for token in range(TOKENS):
            change = torch.zeros_like(scores)
            change[row, token] = step
            with torch.no_grad():
                slope = (objective(scores + change) - objective(scores - change)) / (2 * step)
            assert scores.grad[row, token].item() == pytest.approx(weight * slope.item(), rel=2e-2, abs=2e-3)


def test_better_dropped_tokens_gain_and_worse_kept_ones_lose() -> None:
    """The loss wants states along one direction. The token that has most of it was dropped: descent raises its score,
    and lowers that of the kept token that has least."""
    states = torch.zeros(ROWS, TOKENS, WIDTH)
    states[:, :, 0] = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0])
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]).repeat(ROWS, 1).requires_grad_()
    choice = choice_of(scores)
    (-straight_through(states, choice, 1.0)[..., 0] * choice.kept).sum().backward()
    assert scores.grad is not None
    assert scores.grad[0].argmin() == 6 and scores.grad[0, 6] < 0 < scores.grad[0, 0]


def test_states_keep_their_own_gradient() -> None:
    states, scores, linear = scene()
    states.requires_grad_()
    (straight_through(states, choice_of(scores.requires_grad_()), 0.5) * linear).sum().backward()
    assert torch.equal(states.grad, linear)


def test_where_nothing_is_dropped_the_gradient_is_zero() -> None:
    states, scores, linear = scene()
    (straight_through(states, choice_of(scores.requires_grad_(), TOKENS), 0.01) * linear).sum().backward()
    assert scores.grad is not None and not scores.grad.any()


def test_descent_finds_the_tokens_that_the_loss_needs() -> None:
    """The loss reads three coordinates from the mean of the kept states; three tokens carry them, and the selection
    begins with others."""
    states = 0.1 * torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    needed = [5, 11, 17]
    for coordinate, token in enumerate(needed):
        states[0, token, coordinate] = 1.0
    scores = torch.linspace(1, -1, 24)[None].requires_grad_()
    candidates, budget = torch.ones(1, 24, dtype=torch.bool), torch.tensor([3])
    optimizer, losses = torch.optim.Adam([scores], lr=0.1), []
    for step in range(60):
        choice = ScoredChoice(scores, candidates, topk_mask(scores.detach(), candidates, budget))
        kept = straight_through(states, choice, geometric(1.0, 0.1, step, 60)) * choice.kept[..., None]
        loss = (kept.sum(1)[0, :3] - 1).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert choice.kept[0].nonzero().flatten().tolist() == needed and losses[-1] < 0.2 < losses[0]


def test_temperature_falls_geometrically_from_the_first_to_the_last_step() -> None:
    found = [geometric(1.0, 0.01, step, 5) for step in range(7)]
    assert found == pytest.approx([1.0, 10**-0.5, 0.1, 10**-1.5, 0.01, 0.01, 0.01])
    assert geometric(0.3, 0.3, 2, 5) == pytest.approx(0.3)
