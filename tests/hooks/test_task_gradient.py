"""Scorers learn from the model's own loss: what is trained is what is served, and its gradient reaches the scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, attach
from dart_train.models.structure import SCORERS
from dart_train.reduction import Learned
from tests.laws.cases import NAMES, batch_of, model_of
from tests.zoo import FAMILIES


def scorer_gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """After a backward of the model's loss."""
    loss = model(**batch, use_cache=False).loss
    weights = dict(getattr(model, SCORERS)["layer_2"].named_parameters())
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: g for name, g in zip(weights, found, strict=True) if g is not None}


@pytest.mark.parametrize("reducer", [Learned(keep=8), Learned(keep=8, share=1.0, diversity=0.5)])
@pytest.mark.parametrize("name", NAMES)
def test_forward_is_that_of_the_hard_selection(name: str, reducer: Learned) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    with attach(model, reducer, output="compact") as attached:
        hard = model(**batch, use_cache=False)
        assert attached.last is not None
        mask = attached.last.mask
        with attached.with_task_gradient(0.5):
            relaxed = model(**batch, use_cache=False)
        assert torch.equal(attached.last.mask, mask)
        assert torch.equal(relaxed.logits, hard.logits) and torch.equal(relaxed.loss, hard.loss)


@pytest.mark.parametrize("name", NAMES)
def test_loss_reaches_every_weight_of_the_scorer(name: str) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    with attach(model, Learned(keep=8)) as attached, attached.with_task_gradient(1.0):
        found = scorer_gradients(model, batch)
        assert found.keys() == dict(attached.scorers[2].named_parameters()).keys()
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert found["key.weight"].any() and found["token.0.weight"].any()


def test_weight_scales_the_gradient_and_zero_leaves_the_step_as_it_is() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=8)) as attached:
        assert not scorer_gradients(model, batch)
        with attached.with_task_gradient(1.0, weight=0.0):
            assert not scorer_gradients(model, batch)
        with attached.with_task_gradient(1.0):
            one = scorer_gradients(model, batch)
        with attached.with_task_gradient(1.0, weight=0.5):
            half = scorer_gradients(model, batch)
    for name in one:
        torch.testing.assert_close(half[name], 0.5 * one[name])


def test_gradient_of_the_model_does_not_change() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=8)) as attached:
        weight = model.get_input_embeddings().weight
        (plain,) = torch.autograd.grad(model(**batch, use_cache=False).loss, weight)
        with attached.with_task_gradient(0.5):
            (task,) = torch.autograd.grad(model(**batch, use_cache=False).loss, weight)
    assert plain.any() and torch.equal(plain, task)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_survives_checkpointing(reentrant: bool) -> None:
    model, batch = FAMILIES["llava"].model().train(), batch_of("llava", labels=True)
    model.get_input_embeddings().weight.requires_grad_(True)
    found = []
    with attach(model, [Learned(layer=1, keep=12), Learned(layer=3, keep=6)]) as attached:
        for checkpointing in (False, True):
            if checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.zero_grad()
            with attached.with_task_gradient(1.0):
                model(**batch, use_cache=False).loss.backward()
            found.append([weight.grad.clone() for weight in getattr(model, SCORERS).parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


def test_both_targets_in_one_step() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with attach(model, Learned(keep=8)) as attached:
        weights = list(attached.scorers[2].parameters())
        with attached.with_scorer_loss(), attached.with_task_gradient(1.0), attached.with_teacher(1.0):
            loss = model(**batch, use_cache=False).loss
            both = torch.autograd.grad(loss + attached.scorer_loss(), weights)
        with attached.with_task_gradient(1.0):
            task = torch.autograd.grad(model(**batch, use_cache=False).loss, weights)
        with attached.with_scorer_loss(), attached.with_teacher(1.0):
            model(**batch, use_cache=False)
            attention = torch.autograd.grad(attached.scorer_loss(), weights)
    for found, one, other in zip(both, task, attention, strict=True):
        torch.testing.assert_close(found, one + other)


def test_generation_inside_the_context_is_unaffected() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    with attach(model, Learned(keep=8)) as attached:
        plain = model.generate(**batch, max_new_tokens=4, do_sample=False)
        with attached.with_task_gradient(1.0):
            assert torch.equal(model.generate(**batch, max_new_tokens=4, do_sample=False), plain)


def test_batch_without_images_gives_zero_gradients_also_where_paused() -> None:
    model = model_of("llava")
    batch, text = batch_of("llava", labels=True), batch_of("llava", (0, 0), labels=True)
    with attach(model, Learned(keep=8)) as attached, attached.with_task_gradient(1.0):
        weights = list(attached.scorers[2].parameters())
        model(**batch, use_cache=False)
        assert attached.idle_scorer_loss().item() == 0.0 and not attached.idle_scorer_loss().requires_grad
        with attached.paused():
            model(**text, use_cache=False)
        with attached.with_scorer_loss():
            with attached.paused():
                model(**text, use_cache=False)
            assert attached.scorer_loss().item() == 0.0
        found = torch.autograd.grad(attached.idle_scorer_loss(), weights)
        assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize(
    ("reducer", "temperature", "message"),
    [(DART(keep=8), 1.0, "no stage has a scorer"), (Learned(keep=8), 0.0, r"temperature=0\.0")],
)
def test_wrong_settings_are_refused(reducer: Any, temperature: float, message: str) -> None:
    with (
        attach(model_of("llava"), reducer) as attached,
        pytest.raises(ValueError, match=message),
        attached.with_task_gradient(temperature),
    ):
        pass
