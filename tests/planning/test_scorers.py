"""Plans of recipes with a trained scorer: its parameters, its teacher, and no backward where it learns alone."""

from __future__ import annotations

import pytest

from dart_train.planning import predict
from tests.planning.cases import CPU, inputs_of, quick, recipe_of

LEARNED = "reduction={method: learned, keep: 14, layer: 2, schedule: {kind: fixed}}"
FROZEN = ["parts.projector.mode=frozen", "parts.language.mode=frozen"]


def test_parameters_of_the_scorer_are_counted(text: str) -> None:
    inputs = inputs_of(text, LEARNED)
    width = inputs.config.get_text_config().hidden_size
    expected = sum(w.numel() for w in inputs.reducers[0].make_scorer(width).parameters())
    assert quick(text, LEARNED).parameters["scorer"] == {"all": expected, "trained": expected}
    assert quick(text, LEARNED, "scorer.path=.", "scorer.train=false").parameters["scorer"]["trained"] == 0
    assert "scorer" not in quick(text).parameters


def test_scorer_and_model_together_run_a_teacher_at_full_tokens(text: str) -> None:
    together, task = inputs_of(text, LEARNED), inputs_of(text, LEARNED, "scorer.attention=0", "scorer.task=1")
    (load,), (alone,) = together.budgets, task.budgets
    assert load.teacher is not None and alone.teacher is None
    full = together.full.work
    for number, (layers, lengths) in enumerate(load.teacher.stages):
        assert layers < full.stages[number][0] or number
        assert (lengths == full.stages[number][1]).all()


def test_scorer_alone_runs_at_full_tokens_without_a_backward(text: str) -> None:
    inputs = inputs_of(text, LEARNED, *FROZEN)
    (load,) = inputs.budgets
    assert load.teacher is None and load.budget.reducers[0].keep == 1.0
    plan = predict(recipe_of(text, LEARNED, *FROZEN), timing=True, device=CPU, rows=20, seconds=0.05)
    assert any("without a backward" in note for note in plan.notes)


@pytest.mark.parametrize("task", [0, 1])
def test_properties_of_the_recipe(text: str, task: int) -> None:
    recipe = recipe_of(text, LEARNED, *FROZEN, f"scorer.task={task}")
    assert recipe.trains_at_full_tokens is (task == 0) and recipe.runs_teacher is (task == 1)
    assert not recipe_of(text, "reduction=none").runs_teacher
