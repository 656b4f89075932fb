"""Training the scorers of method `learned`: alone on a frozen model, or together with it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.locate import locate
from ..checkpoints.scorer_file import check_scorers, load_scorers
from ..config import Recipe
from ..hooks import Attached, attach
from ..models.structure import unwrap_model
from .objective import Batch, StepBudgets, SupervisedLogits, count_targets, forward_supervised, forward_with_teacher


def check_initial_scorers(recipe: Recipe, meta_model: Any) -> None:
    """Raises ValueError where `scorer.path` has no scorers for this model, before any weight is read."""
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


def loss_with_scorer(
    recipe: Recipe, budgets: StepBudgets, model: Any, attached: Attached, batch: Any, host: Batch
) -> tuple[Tensor, SupervisedLogits, Tensor, Tensor | None]:
    """(the loss as a sum over this rank's targets, the output, the scorers' own loss, the divergence of a teacher).

    The scorers' loss is a mean over groups of visual tokens; it counts as that much for each target. Alone, the model
    runs once, at full tokens. Together, a teacher at full tokens runs in the same forward as the student.
    """
    targets, full, divergence = count_targets(host), [1.0] * len(attached.reducers), None
    alone = recipe.trains_scorer_alone
    with attached.with_scorer_loss(recipe.scorer.answer_tokens):
        with budgets.temporarily(*full) if alone else nullcontext():
            if alone:
                output = forward_supervised(model, attached, batch, host)
            else:
                output, teacher = forward_with_teacher(model, attached, batch, host, full)
                if recipe.distill.enabled:
                    divergence = output.divergence(teacher, recipe.distill.temperature)
        scorer_loss = attached.scorer_loss()
    loss = output.loss()
    if divergence is not None:
        loss = recipe.distill.alpha * divergence + (1 - recipe.distill.alpha) * loss
    return loss + recipe.scorer.attention * targets * scorer_loss, output, scorer_loss, divergence
