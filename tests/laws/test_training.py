"""Training with the reduction on: gradients, targets, and a selection that does not depend on the answer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, KeepAll, Random, UniformGrid, attach
from tests.fixtures.reference_forward import masked_logits
from tests.laws.cases import NAMES, batch_of, model_of
from tests.laws.test_keep_all import gradients
from tests.zoo import FAMILIES

REDUCER = DART(keep=8)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_both_outputs_give_the_masked_forwards_loss(name: str, side: str) -> None:
    model, batch = model_of(name), batch_of(name, side=side, labels=True)
    losses = {}
    for output in ("expand", "compact"):
        with torch.no_grad(), attach(model, REDUCER, output=output) as attached:
            losses[output] = model(**batch).loss
    assert attached.last is not None
    with torch.no_grad():
        logits = masked_logits(model, batch, [(2, attached.last.mask)])
    targets = batch["labels"][:, 1:]
    truth = torch.nn.functional.cross_entropy(logits[:, :-1][targets != -100], targets[targets != -100])
    for loss in losses.values():
        torch.testing.assert_close(loss, truth, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_supervised_target_is_lost(name: str) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    with torch.no_grad(), attach(model, REDUCER, output="compact"):
        logits = model(**batch).logits
    assert logits.shape[:2] == (1, int((batch["labels"] != -100).sum()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("output", ["expand", "compact"])
def test_first_token_of_a_row_is_not_a_target(output: str, side: str) -> None:
    """No token predicts it: the padding on its left must not count as a predecessor."""
    model, batch = model_of("llava"), batch_of("llava", (1, 2), side, labels=True)
    first = batch["attention_mask"].cumsum(1).eq(1) & batch["attention_mask"].bool()
    labelled = {**batch, "labels": torch.where(first, batch["input_ids"], batch["labels"])}
    assert int((labelled["labels"] != batch["labels"]).sum()) == 2 and (side == "right" or not first[:, 0].all())
    # A fixed selection: with a supervised first token there is no prompt to select by.
    with torch.no_grad(), attach(model, UniformGrid(keep=8), output=output):
        wanted, found = model(**batch).loss, model(**labelled).loss
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reducer", [DART(keep=6, merge="nearest"), FastV(keep=6), Random(keep=6)])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3"])
def test_both_outputs_give_the_same_gradients(name: str, reducer: Any) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    with attach(model, reducer, output="expand"):
        long = gradients(model, batch)
    with attach(model, reducer, output="compact"):
        short = gradients(model, batch)
    assert long.keys() == short.keys()
    for name in long:
        torch.testing.assert_close(short[name], long[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_survive_checkpointing(name: str, reentrant: bool) -> None:
    model, batch = FAMILIES[name].model().train(), batch_of(name, labels=True)
    model.get_input_embeddings().weight.requires_grad_(True)
    for reducer in ([DART(layer=1, keep=12), FastV(layer=3, keep=5)], Random(keep=8)):
        with attach(model, reducer, output="compact"):
            plain = gradients(model, batch)
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            again = gradients(model, batch)
            model.activation_checkpointing_disable()
        for parameter in plain.keys() & again.keys():
            torch.testing.assert_close(again[parameter], plain[parameter], rtol=1e-4, atol=1e-5)
        decoder = [p for p in plain if ".layers." in p and "vision" not in p and "visual" not in p]
        assert decoder and all(p in again for p in decoder)


@pytest.mark.parametrize("reducer", [REDUCER, FastV(keep=8), Random(keep=8), DART(keep=8, pivot="random")])
@pytest.mark.parametrize("name", NAMES)
def test_other_answers_keep_the_same_tokens(name: str, reducer: Any) -> None:
    model, batch = model_of(name), batch_of(name, labels=True)
    changed = copy.deepcopy(batch)
    supervised = batch["labels"] != -100
    other = torch.randint(97, 120, batch["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    changed["input_ids"] = torch.where(supervised, other, batch["input_ids"])
    changed["labels"] = torch.where(supervised, other, batch["labels"])
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    assert torch.equal(kept(model, batch, reducer), kept(model, changed, reducer))


@pytest.mark.parametrize("name", NAMES)
def test_training_keeps_what_a_prefill_would(name: str) -> None:
    """With and without labels, with and without the answer: the same visual tokens are kept."""
    model = model_of(name)
    trained = batch_of(name, (1, 2), "right", labels=True)
    prompt = batch_of(name, (1, 2), "right", labels=False)
    in_training, in_prefill = kept(model, trained, REDUCER), kept(model, prompt, REDUCER)
    width = min(in_training.shape[1], in_prefill.shape[1])
    ids = trained["input_ids"][:, :width] == prompt["input_ids"][:, :width]
    visual = in_training[:, :width] | in_prefill[:, :width]
    assert bool(ids[visual].all())
    assert torch.equal(in_training[:, :width], in_prefill[:, :width])


def test_dropped_supervised_image_tokens_are_not_targets() -> None:
    """Some collators supervise everything but padding; both outputs then still agree."""
    model, batch = model_of("llava"), dict(batch_of("llava", side="right"))
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    losses = []
    for output in ("expand", "compact"):
        with torch.no_grad(), attach(model, REDUCER, output=output):
            losses.append(model(**batch).loss)
    torch.testing.assert_close(losses[0], losses[1])
    with torch.no_grad():
        plain = model(**batch).loss
        with attach(model, KeepAll()):
            torch.testing.assert_close(model(**batch).loss, plain)


def test_loss_follows_the_number_of_items_in_the_batch() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    items = torch.tensor(7)
    with torch.no_grad():
        plain = model(**batch, num_items_in_batch=items).loss
        for output in ("expand", "compact"):
            with attach(model, KeepAll(), output=output):
                torch.testing.assert_close(model(**batch, num_items_in_batch=items).loss, plain)


def kept(model: Any, batch: dict[str, Tensor], reducer: Any) -> Tensor:
    with torch.no_grad(), attach(model, reducer) as attached:
        model(**batch)
    assert attached.last is not None
    return attached.last.kept_visual
