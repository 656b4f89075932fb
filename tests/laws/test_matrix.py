"""Every method in prefill, training and generation, on families in turn; every registered method is included."""

from __future__ import annotations

import pytest
import torch

from dart_train import REDUCERS, FewerPixels, KeepAll, attach
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import (
    EAGER_TOO,
    KERNELS,
    METHODS,
    NAMES,
    ROUNDING,
    batch_of,
    method_on_family,
    model_of,
    new_tokens,
    reducer_of,
)

MERGING = "pooling"  # not a masked forward; its own laws, and DART on every family, are in test_reduced_forward


def test_every_method_and_every_family_are_in_the_matrix() -> None:
    pairs = method_on_family()
    assert {method for method, _ in pairs} == set(METHODS) == set(REDUCERS) - {"fewer_pixels"}
    others = {name for method, name in pairs if method != "dart"}
    assert others == {name for method, name in pairs if method == "dart"} == set(NAMES)


def test_fewer_pixels_is_keep_all_inside_a_model() -> None:
    """The laws need not be tested with it again: it only has another name."""
    assert FewerPixels.__mro__[1] is KeepAll
    assert not {"select", "count", "merge_targets", "required_inputs", "budgets", "counts"} & set(vars(FewerPixels))


@pytest.mark.parametrize(
    ("method", "name", "attn"),
    [
        (method, name, attn)
        for method, name in method_on_family()
        for attn in KERNELS
        if method not in (MERGING, "dart") and (attn == "sdpa" or name in EAGER_TOO)
    ],
)
def test_reduced_forward_is_the_masked_one(method: str, name: str, attn: str) -> None:
    model, batch = model_of(name, attn), batch_of(name)
    with torch.no_grad(), attach(model, reducer_of(method)) as attached:
        logits = model(**batch).logits
    assert attached.last is not None
    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, attached.last.mask)])
    assert first_difference(logits, truth, attached.last.mask) < ROUNDING


@pytest.mark.parametrize(("method", "name"), method_on_family(1))
def test_full_tokens_are_the_plain_model(method: str, name: str) -> None:
    model, batch = model_of(name), batch_of(name, side="right", labels=True)
    with torch.no_grad():
        plain = model(**batch)
        with attach(model, reducer_of(method, 1.0)) as attached:
            full = model(**batch)
    assert attached.last is not None and attached.last.visual_after == attached.last.visual_before
    assert first_difference(full.logits, plain.logits, batch["attention_mask"].bool()) < ROUNDING
    torch.testing.assert_close(full.loss, plain.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "name"), method_on_family())
def test_training_keeps_the_budget_and_both_outputs_agree(method: str, name: str) -> None:
    model, batch, losses = model_of(name), batch_of(name, labels=True), []
    budget = None if method == "keep_all" else 5
    for output in ("expand", "compact"):
        with attach(model, reducer_of(method, 5), output=output) as attached:
            loss = model(**batch).loss
            loss.backward()
            losses.append(loss.detach())
        kept = attached.last
        assert kept is not None
        assert kept.visual_after == tuple(n if budget is None else min(budget, n) for n in kept.visual_before)
        assert kept.kept_visual.sum(1).tolist() == list(kept.visual_after)
        assert bool((kept.mask | kept.visual)[batch["attention_mask"].bool()].all()), "text is never dropped"
    model.zero_grad()
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("method", "name"), method_on_family())
def test_cached_generation_is_recomputation(method: str, name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    with attach(model, reducer_of(method, 6)):
        cached = new_tokens(model, batch, 3)
        assert torch.equal(cached, new_tokens(model, batch, 3, use_cache=False))
