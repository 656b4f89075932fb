"""A deep copy of an attached model has a reduction of its own: reference models and averaged weights are made so."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dart_train import DART, FastV, Learned, attach, attached_to
from tests.laws.cases import NAMES, batch_of, new_tokens
from tests.laws.test_removal_and_isolation import traces
from tests.zoo import FAMILIES

STAGES = [DART(layer=0, keep=20), FastV(layer=2, keep=10)]


def disturb(model: nn.Module) -> None:
    """Other weights, so that a forward with the wrong ones shows."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(weight) * 0.1)


def logits_of(model: Any, name: str = "llava") -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**batch_of(name)).logits
    return logits


def masks(model: Any) -> torch.Tensor:
    attached = attached_to(model)
    assert attached is not None and attached.last is not None
    return attached.last.mask


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_independent_and_right(name: str) -> None:
    model = FAMILIES[name].model()
    logits_of(model, name)  # transformers leaves its own recorders in the first forward
    plain = traces(model)
    attached = attach(model, STAGES)
    before, ids = logits_of(model, name), new_tokens(model, batch_of(name))
    twin = copy.deepcopy(model)
    mine = attached_to(twin)
    assert mine is not None and mine is not attached and mine.reducers == attached.reducers
    assert torch.equal(logits_of(twin, name), before) and torch.equal(masks(twin), masks(model))
    assert torch.equal(new_tokens(twin, batch_of(name)), ids)

    disturb(twin)
    fresh = FAMILIES[name].model()
    fresh.load_state_dict(twin.state_dict())
    attach(fresh, STAGES)
    assert torch.equal(logits_of(twin, name), logits_of(fresh, name))
    assert torch.equal(new_tokens(twin, batch_of(name)), new_tokens(fresh, batch_of(name)))
    assert torch.equal(logits_of(model, name), before) and torch.equal(new_tokens(model, batch_of(name)), ids)

    mine.remove()
    assert {k: v[:2] for k, v in traces(twin).items()} == {k: v[:2] for k, v in plain.items()}
    assert torch.equal(logits_of(model, name), before), "removing the copy's reduction touched the original"
    attached.remove()
    assert {k: v[:2] for k, v in traces(model).items()} == {k: v[:2] for k, v in plain.items()}
    again = attach(twin, DART(keep=8))
    logits_of(twin, name)
    assert again.last is not None and attached_to(model) is None


def test_a_reference_model_inside_peft_stays_while_the_policy_trains() -> None:
    model = get_peft_model(FAMILIES["llava"].model(), LoraConfig(target_modules=["q_proj"]))
    attach(model, DART(keep=8))
    reference, batch = copy.deepcopy(model), batch_of("llava", labels=True)
    before = logits_of(reference)
    model.train()
    model(**batch).loss.backward()
    assert all(weight.grad is None for weight in reference.parameters())
    disturb(model)
    assert torch.equal(logits_of(reference), before)
    assert attached_to(reference) is not attached_to(model)


def test_averaged_weights_follow_the_model() -> None:
    model = FAMILIES["llava"].model()
    attached = attach(model, DART(keep=8))
    average = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.0))
    disturb(model)
    average.update_parameters(model)  # the first update copies
    assert torch.equal(logits_of(average), logits_of(model))
    attached.remove()
    assert masks(average.module).sum() > 0


def test_scorers_are_copied() -> None:
    model = FAMILIES["llava"].model()
    with attach(model, Learned(keep=8)) as attached:
        twin = copy.deepcopy(model)
        mine = attached_to(twin)
        assert mine is not None
        (layer, scorer), (_, original) = *mine.scorers.items(), *attached.scorers.items()
        assert all(torch.equal(a, b) for a, b in zip(scorer.parameters(), original.parameters(), strict=True))
        assert not {id(p) for p in scorer.parameters()} & {id(p) for p in original.parameters()}
        assert {id(p) for p in scorer.parameters()} <= {id(p) for p in twin.parameters()}
        before = logits_of(model)
        assert torch.equal(logits_of(twin), before)
        disturb(scorer)
        logits_of(twin)
        assert not torch.equal(masks(twin), masks(model)) and torch.equal(logits_of(model), before)
        with mine.with_scorer_loss():
            mine.set_keep(1.0)
            twin(**batch_of("llava"))
            mine.scorer_loss().backward()
        assert all(p.grad is None for p in original.parameters()) and layer in attached.scorers
    mine.remove()
    assert not any("dart_scorers" in name for name, _ in [*model.named_modules(), *twin.named_modules()])


def test_a_copy_made_while_scorers_train_has_no_hooks_of_the_original() -> None:
    model = FAMILIES["llava"].model()
    logits_of(model)
    plain = traces(model)
    attached = attach(model, Learned(keep=1.0))
    with attached.with_scorer_loss():
        twin = copy.deepcopy(model)
    mine = attached_to(twin)
    assert mine is not None
    mine.remove()
    assert {k: v[:2] for k, v in traces(twin).items()} == {k: v[:2] for k, v in plain.items()}


def test_attached_and_its_model_are_copied_together() -> None:
    model = FAMILIES["llava"].model()
    attached = attach(model, DART(keep=8))
    attached.set_keep(5)
    for pair in ((model, attached), (attached, model)):
        twins = copy.deepcopy(pair)
        found = {type(each): each for each in twins}
        twin, mine = found[type(model)], found[type(attached)]
        assert attached_to(twin) is mine and mine is not attached
        logits_of(twin)
        assert mine is not None and mine.last is not None and set(mine.last.visual_after) <= {0, 5}


def test_a_part_of_the_model_is_copied_without_the_reduction() -> None:
    model = FAMILIES["qwen3_vl"].model()
    logits_of(model, "qwen3_vl")
    plain = traces(model.model)
    attach(model, STAGES)
    assert {k: v[:2] for k, v in traces(copy.deepcopy(model.model)).items()} == {k: v[:2] for k, v in plain.items()}


@pytest.mark.parametrize("save", [pickle.dumps, lambda model: torch.save(model, io.BytesIO())], ids=["pickle", "save"])
def test_pickling_is_refused_with_the_way_out(save: Any) -> None:
    model = FAMILIES["llava"].model()
    with attach(model, DART(keep=8)):
        with pytest.raises(pickle.PicklingError, match=r"save_pretrained.*remove\(\) first"):
            save(model)
        torch.save(model.state_dict(), io.BytesIO())
    save(model)
