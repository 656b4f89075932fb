"""Training the scorers of method `learned`: alone on a frozen model, or together with it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.locate import locate
from ..checkpoints.scorer_file import check_scorers, load_scorers
from ..config import Recipe
from ..hooks import Attached, attach
from ..hooks.scorers import check_attention_rows
from ..models.structure import find_parts, unwrap_model
from ..reduction.budget import Keep
from ..reduction.schedule import geometric
from .objective import Batch, StepBudgets, SupervisedLogits, forward_supervised, forward_with_teacher, target_weight


def check_initial_scorers(recipe: Recipe, meta_model: Any) -> None:
    """Raises ValueError where `scorer.path` has no scorers for this model, or where they cannot learn from attention,
    before any weight is read."""
    if recipe.trains_scorer and recipe.scorer.attention:
        parts = find_parts(meta_model)
        check_attention_rows(parts, [r.layer for r in recipe.reduction.reducers() if "scorer" in r.required_inputs()])
    if recipe.has_scorer and recipe.scorer.path is not None:
        with attach(meta_model, recipe.reduction.reducers()) as attached:
            check_scorers(_folder(recipe), attached.scorers, unwrap_model(meta_model))


def place_initial_scorers(recipe: Recipe, model: Any) -> None:
    """Before the reduction is attached, which makes new scorers where none are."""
    if recipe.has_scorer and recipe.scorer.path is not None:
        load_scorers(_folder(recipe), model)


def _folder(recipe: Recipe) -> Path:
    assert recipe.scorer.path is not None
    return locate(recipe.scorer.path, None, None).folder


@dataclass(frozen=True)
class ScorerStep:
    """The loss of a forward in which scorers learn.

    total: a sum over this rank's targets; attention_loss: the scorers' own, a mean over groups of visual tokens (None:
    they learn from the task alone); overlap: see `Attached.scorer_overlap`; task_loss, divergence (from the teacher of
    `distill`): sums over targets.
    """

    total: Tensor
    output: SupervisedLogits
    task_loss: Tensor
    attention_loss: Tensor | None
    overlap: Tensor | None
    divergence: Tensor | None


def loss_with_scorer(
    recipe: Recipe, budgets: StepBudgets, model: Any, attached: Attached, batch: Any, host: Batch, step: int
) -> ScorerStep:
    """The scorers' loss against attention counts as much for each target as it is. It needs a forward at full tokens:
    the only one where nothing else is trained, else that of a teacher in the same forward as the student. The task's
    loss reaches the scorers in the student's forward."""
    scorer = recipe.scorer
    attention, overlap, divergence = None, None, None
    with ExitStack() as stack:
        if scorer.task:
            stack.enter_context(attached.with_task_gradient(temperature(recipe, step, budgets.steps), scorer.task))
        if scorer.attention:
            stack.enter_context(attached.with_scorer_loss(scorer.answer_tokens, budgets.served))
        if recipe.trains_at_full_tokens:
            with budgets.temporarily(*_full(attached)):
                output = forward_supervised(model, attached, batch, host)
        elif scorer.attention or recipe.distill.enabled:
            keep = _full(attached) if scorer.attention else budgets.teacher(step, host)
            output, teacher = forward_with_teacher(model, attached, batch, host, keep)
            if recipe.distill.enabled:
                divergence = output.divergence(teacher, recipe.distill.temperature)
        else:
            output = forward_supervised(model, attached, batch, host)
        if scorer.attention:
            attention, overlap = attached.scorer_loss(), attached.scorer_overlap()
        extra = attached.idle_scorer_loss() if attention is None else scorer.attention * target_weight(host) * attention
    loss = task_loss = output.loss()
    if divergence is not None:
        loss = recipe.distill.alpha * divergence + (1 - recipe.distill.alpha) * loss
    return ScorerStep(loss + extra, output, task_loss, attention, overlap, divergence)


def temperature(recipe: Recipe, step: int, steps: int) -> float:
    """Of the relaxed top-k at optimizer step `step` of `steps`."""
    return geometric(recipe.scorer.temperature_start, recipe.scorer.temperature_end, step, steps)


def _full(attached: Attached) -> list[Keep]:
    return [1.0] * len(attached.reducers)
