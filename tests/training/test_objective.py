"""The objective in isolation: divergence, accuracy, the budget and seed of each step, validation metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dart_train.config import Recipe, load_recipe
from dart_train.training.objective import StepBudgets, SupervisedLogits
from dart_train.training.validation import Validation
from tests.fixtures.run_scene import make_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return load_recipe(make_recipe(tmp_path_factory.mktemp("objective")))


def test_divergence_is_kl_from_teacher_to_student() -> None:
    student, teacher = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = (p * (p.log() - q.log())).sum()
    found = SupervisedLogits(student, torch.tensor([0])).divergence(teacher, temperature=2.0)
    torch.testing.assert_close(found, expected)
    reverse = (q * (q.log() - p.log())).sum()
    assert abs(float(expected - reverse)) > 1e-3  # the two directions differ here


def test_loss_without_targets_is_zero_with_a_gradient() -> None:
    logits = torch.ones(0, 7, requires_grad=True)
    loss = SupervisedLogits(logits, torch.zeros(0, dtype=torch.long)).loss()
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None


class FakeAttached:
    """Records what a step sets."""

    def __init__(self) -> None:
        self.reducers = [SimpleNamespace(keep=0.25)]
        self.seed = -1

    def set_keep(self, *keep: Any) -> None:
        self.reducers = [SimpleNamespace(keep=each) for each in keep]

    def refresh(self) -> None:
        pass


def test_every_step_has_its_own_seed_and_the_same_on_every_rank(recipe: Recipe) -> None:
    seeds = []
    for _ in range(2):
        attached: Any = FakeAttached()
        budgets = StepBudgets(recipe, attached, steps=10)
        for step in range(3):
            budgets.start_step(step)
            seeds.append(attached.seed)
    assert seeds[:3] == seeds[3:] and len(set(seeds)) == 3


def test_temporary_budgets_are_restored(recipe: Recipe) -> None:
    attached: Any = FakeAttached()
    budgets = StepBudgets(recipe, attached, steps=10)
    with pytest.raises(RuntimeError), budgets.temporarily(0.5):
        assert attached.reducers[0].keep == 0.5
        raise RuntimeError
    assert attached.reducers[0].keep == 0.25


def test_validation_sums_over_batches_and_sets_each_budget(recipe: Recipe) -> None:
    attached: Any = FakeAttached()
    budgets = StepBudgets(recipe, attached, steps=10)
    used = []

    def forward(host: Any) -> SupervisedLogits:
        used.append(attached.reducers[0].keep)
        logits = torch.tensor([[4.0, 0.0]]).repeat(host["targets"], 1)
        return SupervisedLogits(logits, torch.tensor([0, 1, 1, 1][: host["targets"]]))

    @contextmanager
    def eval_mode() -> Iterator[Any]:
        yield forward

    accelerator = SimpleNamespace(device="cpu", reduce=lambda tensor, how: tensor)
    batches: Any = [{"targets": 1}, {"targets": 4}]
    validation = Validation({"": (0.25,), "_at_full": (1.0,)}, batches)
    metrics = validation.evaluate(budgets, eval_mode, accelerator)
    assert used == [0.25, 0.25, 1.0, 1.0] and attached.reducers[0].keep == 0.25
    right, wrong = (float(torch.nn.functional.cross_entropy(torch.tensor([4.0, 0.0]), torch.tensor(i))) for i in (0, 1))
    for suffix in ("", "_at_full"):
        assert metrics[f"eval_accuracy{suffix}"] == pytest.approx(2 / 5)
        assert metrics[f"eval_loss{suffix}"] == pytest.approx((2 * right + 3 * wrong) / 5)
