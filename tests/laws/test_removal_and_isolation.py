"""Removing the reduction restores the model, also after an exception; forwards do not affect each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dart_train import DART, FastV, Random, attach
from tests.laws.cases import NAMES, batch_of, model_of, new_tokens
from tests.zoo import FAMILIES

STAGES = [DART(layer=0, keep=20), FastV(layer=2, keep=10)]


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything that hooks and patches could have left, module by module."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called", "_backward_hooks")
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[name] = (
            sorted(vars(module)),
            [len(getattr(module, h)) for h in hooks],
            getattr(module, "config", None),
        )
    return found


@pytest.mark.parametrize("name", NAMES)
def test_remove_restores_the_model(name: str) -> None:
    model, batch = FAMILIES[name].model(), batch_of(name)
    ids = new_tokens(model, batch)
    with torch.no_grad():
        logits = model(**batch).logits
    before = traces(model)  # after a forward: the model's own recorders are set by then
    attached = attach(model, STAGES)
    new_tokens(model, batch)
    attached.remove()
    attached.remove()
    assert {k: (v[0], v[1]) for k, v in traces(model).items()} == {k: (v[0], v[1]) for k, v in before.items()}
    assert all(after[2] is before[key][2] for key, after in traces(model).items())
    assert torch.equal(new_tokens(model, batch), ids)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, logits)


def test_loss_function_of_the_user_is_restored() -> None:
    model = FAMILIES["llava"].model()
    mine = lambda logits, labels, *args, **kwargs: logits.sum()  # noqa: E731
    model.loss_function = mine
    with attach(model, DART(keep=8)):
        assert model.loss_function is not mine
    assert model.loss_function is mine


class Sabotage(Exception):
    pass


@pytest.mark.parametrize("layer", [1, 3])
def test_remove_after_an_exception_restores_the_model(layer: int) -> None:
    model, batch = FAMILIES["llava"].model(), batch_of("llava")
    model(**batch)

    def fail(*args: Any) -> None:
        raise Sabotage

    handle = model.get_decoder().layers[layer].self_attn.o_proj.register_forward_pre_hook(fail)
    before = traces(model)
    with pytest.raises(Sabotage), attach(model, STAGES):
        model(**batch)
    handle.remove()
    assert [v[0] for v in traces(model).values()] == [v[0] for v in before.values()]
    plain = model_of("llava")
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain(**batch).logits)
        with attach(model, STAGES) as again:
            model(**batch)
            assert again.last is not None


def test_exception_in_one_forward_does_not_affect_the_next() -> None:
    model, batch, text = FAMILIES["llava"].model(), batch_of("llava"), batch_of("llava", (0, 0))
    with torch.no_grad():
        plain = model(**text).logits
    with torch.no_grad(), attach(model, DART(keep=8)):
        handle = model.get_decoder().layers[3].register_forward_pre_hook(lambda *args: (_ for _ in ()).throw(Sabotage))
        with pytest.raises(Sabotage):
            model(**batch)
        handle.remove()
        assert torch.equal(model(**text).logits, plain)


def test_paused_is_the_plain_model() -> None:
    model, batch = model_of("qwen3_vl"), batch_of("qwen3_vl")
    with torch.no_grad():
        plain = model(**batch).logits
        with attach(model, DART(keep=8)) as attached:
            with attached.paused():
                assert torch.equal(model(**batch).logits, plain)
            assert not torch.equal(model(**batch).logits, plain)


def test_rows_without_an_image_are_untouched() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1, 0, 2), "right")
    with torch.no_grad():
        plain = model(**batch).logits[1]
        with attach(model, DART(keep=8)) as attached:
            reduced = model(**batch).logits[1]
    assert attached.last is not None and attached.last.visual_after == (8, 0, 8)
    real = batch["attention_mask"][1].bool()
    torch.testing.assert_close(reduced[real], plain[real], rtol=1e-4, atol=1e-4)


def test_budget_can_change_between_steps() -> None:
    model, batch = model_of("llava"), batch_of("llava", (1,))
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        for keep, number in ((16, 16), (0.5, 32), (1.0, 64), (3, 3)):
            attached.set_keep(keep)
            model(**batch)
            assert attached.last is not None and attached.last.visual_after == (number,)


def test_random_selections_follow_the_seed() -> None:
    """A trainer sets it to its step."""
    model, batch, kept = model_of("llava"), batch_of("llava", (1,)), []
    with torch.no_grad(), attach(model, Random(keep=8)) as attached:
        for attached.seed in (0, 1, 0):
            model(**batch)
            assert attached.last is not None
            kept.append(attached.last.mask)
    assert torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[1])


def test_pivots_of_the_last_forward_are_those_that_count() -> None:
    """A budget of 2 leaves room for 2 of the 4 image pivots."""
    model, batch = model_of("llava"), batch_of("llava", (1,))
    with torch.no_grad(), attach(model, DART(keep=2)) as attached:
        model(**batch)
    kept = attached.last
    assert kept is not None and kept.pivots is not None
    assert torch.equal(kept.pivots & kept.visual, kept.kept_visual) and kept.visual_after == (2,)
