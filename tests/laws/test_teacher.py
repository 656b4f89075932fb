"""A teacher in the forward of its student gives the logits and gradients of two forwards, at less than their cost."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from dart_train import DART, FastV, Learned, Random, attach
from dart_train.hooks import Attached
from dart_train.models.structure import find_parts
from dart_train.training.objective import (
    SupervisedLogits,
    forward_supervised,
    forward_teacher_separately,
    forward_with_teacher,
)
from tests.laws.cases import batch_of, model_of
from tests.zoo import FAMILIES

NAMES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3")
STUDENT = DART(keep=0.2)
FULL, GAP = 1.0, 0.5


@cache
def adapted(name: str) -> Any:
    """With LoRA on the language model, both of its matrices other than zero, and no dropout; the rest is frozen."""
    linear = r".*\.(q_proj|v_proj|down_proj)"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=linear, lora_dropout=0.0)
        model = get_peft_model(copy.deepcopy(model_of(name)), lora)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def gradients_of(model: Any, supervised: SupervisedLogits, teacher: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (supervised.loss() + supervised.divergence(teacher, 2.0)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_equal(model: Any, attached: Attached, batch: dict[str, Tensor], keep: float) -> None:
    results = []
    for way in (forward_teacher_separately, forward_with_teacher):
        supervised, teacher = way(model, attached, batch, batch, [keep] * len(attached.reducers))
        assert attached.last is not None
        results.append((supervised, teacher, attached.last.mask, gradients_of(model, supervised, teacher)))
    (supervised, teacher, mask, gradients), (shared, appended, same, same_gradients) = results
    torch.testing.assert_close(shared.logits, supervised.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(appended, teacher, rtol=1e-4, atol=1e-4)
    assert torch.equal(mask, same) and torch.equal(supervised.targets, shared.targets)
    assert not appended.requires_grad and not torch.allclose(appended, shared.logits, atol=1e-3)
    assert gradients.keys() == same_gradients.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("keep", [FULL, GAP])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_teacher_in_one_forward_equals_two_forwards(name: str, side: str, keep: float) -> None:
    model, batch = adapted(name), batch_of(name, side=side, labels=True)
    with attach(model, STUDENT, output="compact") as attached:
        assert_equal(model, attached, batch, keep)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_teacher_in_one_forward_equals_two_forwards_under_checkpointing(name: str, reentrant: bool) -> None:
    model, batch = adapted(name), batch_of(name, labels=True)
    model.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    try:
        with attach(model, STUDENT, output="compact") as attached:
            assert_equal(model, attached, batch, GAP)
    finally:
        model.activation_checkpointing_disable()
        model.disable_input_require_grads()


@pytest.mark.parametrize(
    "stages",
    [
        [DART(layer=0, keep=0.2)],
        [FastV(keep=0.2)],
        [Random(keep=0.2)],
        [DART(layer=1, keep=0.4), FastV(layer=3, keep=0.1)],
        [DART(keep=0.2, merge="nearest")],
    ],
)
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_teacher_with_every_method_and_stages(name: str, stages: list[Any]) -> None:
    model, batch = adapted(name), batch_of(name, labels=True)
    with attach(model, stages, output="compact") as attached:
        assert_equal(model, attached, batch, FULL)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_teacher_with_full_fine_tuning(name: str) -> None:
    model, batch = FAMILIES[name].model().train(), batch_of(name, labels=True)
    with attach(model, STUDENT, output="compact") as attached:
        assert_equal(model, attached, batch, GAP)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_teacher_of_a_batch_without_images_is_the_model_itself(name: str) -> None:
    model, batch = adapted(name), batch_of(name, (0, 0), labels=True)
    with attach(model, STUDENT, output="compact") as attached:
        supervised, teacher = forward_with_teacher(model, attached, batch, batch, [FULL])
        alone = forward_supervised(model, attached, batch, batch)
    torch.testing.assert_close(supervised.logits, alone.logits)
    torch.testing.assert_close(teacher, alone.logits)
    assert not teacher.requires_grad and supervised.logits.requires_grad


def test_tower_and_first_layers_run_once_and_the_others_twice() -> None:
    model, batch = adapted("llava"), batch_of("llava", labels=True)
    inner, runs = model.get_base_model().model, dict.fromkeys(["tower", *range(5)], 0)

    def count(name: Any) -> Any:
        def increment(*args: Any) -> None:
            runs[name] += 1

        return increment

    hooks = [inner.vision_tower.register_forward_hook(count("tower"))]
    hooks += [layer.mlp.register_forward_hook(count(i)) for i, layer in enumerate(inner.language_model.layers)]
    with attach(model, STUDENT, output="compact") as attached:
        forward_with_teacher(model, attached, batch, batch, [GAP])
    for hook in hooks:
        hook.remove()
    assert runs == {"tower": 1, 0: 1, 1: 1, 2: 2, 3: 2, 4: 2}


def test_teacher_dropout() -> None:
    model, batch = copy.deepcopy(adapted("llava")), batch_of("llava", labels=True)
    layers = model.get_base_model().model.language_model.layers
    with attach(model, STUDENT, output="compact") as attached:
        _drop(layers[2:])
        draws = [forward_with_teacher(model, attached, batch, batch, [GAP]) for _ in range(2)]
        assert torch.equal(draws[0][1], draws[1][1]) and not torch.equal(draws[0][0].logits, draws[1][0].logits)
        _drop(layers[:1])
        draws = [forward_with_teacher(model, attached, batch, batch, [GAP]) for _ in range(2)]
        assert not torch.equal(draws[0][1], draws[1][1])
    assert all(module.training for module in model.modules())


def _drop(layers: Any) -> None:
    for layer in layers:
        for module in layer.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = torch.nn.Dropout(0.5).train()


def test_teacher_logits_are_appended_and_the_loss_is_the_students() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with torch.no_grad(), attach(model, STUDENT, output="expand") as attached:
        alone = model(**batch, use_cache=False)
        with attached.with_teacher(GAP):
            both = model(**batch, use_cache=False)
        attached.set_keep(GAP)
        gentler = model(**batch, use_cache=False)
    torch.testing.assert_close(both.loss, alone.loss)
    torch.testing.assert_close(both.logits, torch.cat([alone.logits, gentler.logits]), rtol=1e-4, atol=1e-4)


def test_teacher_refusals() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    attached = attach(model, STUDENT)
    with attached, torch.no_grad(), attached.with_teacher(GAP), pytest.raises(ValueError, match="use_cache=False"):
        model(**batch, use_cache=True)
    with pytest.raises(ValueError, match="2 budgets were given for 1 stages"), attached.with_teacher(GAP, GAP):
        pass
    everything = {**batch, "labels": batch["input_ids"]}
    attached = attach(model, STUDENT, output="compact")
    with attached, attached.with_teacher(GAP), pytest.raises(ValueError, match="Supervise no visual tokens"):
        model(**everything, use_cache=False)


def test_teacher_failure_leaves_the_model_as_before() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with torch.no_grad():
        plain = model(**batch).logits
        with attach(model, STUDENT) as attached:
            with pytest.raises(ValueError), attached.with_teacher(GAP):
                model(**batch, use_cache=True)
            with attached.paused():
                torch.testing.assert_close(model(**batch).logits, plain)
    assert not any(module.training for module in model.modules())


def test_autocast_cache_of_the_teacher_leaves_gradients() -> None:
    """Where autocast keeps what it cast without gradient for the teacher, the student's weights would get none."""
    model, batch = adapted("llava"), batch_of("llava", labels=True)
    with attach(model, STUDENT, output="compact") as attached:
        exact = gradients_of(model, *forward_with_teacher(model, attached, batch, batch, [GAP]))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = gradients_of(model, *forward_with_teacher(model, attached, batch, batch, [GAP]))
    assert rounded.keys() == exact.keys()
    assert all(bool(gradient.any()) for gradient in rounded.values())


def test_autocast_cache_is_off_for_the_teacher_only() -> None:
    """Older torch hands the student the weights that were cast without gradient (2.13 does not)."""
    model, batch, enabled = adapted("llava"), batch_of("llava", labels=True), []
    with attach(model, STUDENT, output="compact") as attached, torch.autocast("cpu", torch.bfloat16):
        last = find_parts(model).layers[-1]
        hook = last.register_forward_hook(lambda *_: enabled.append(torch.is_autocast_cache_enabled()))
        forward_with_teacher(model, attached, batch, batch, [GAP])
        hook.remove()
    assert enabled == [False, True]


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (DART(layer=0, keep=0.2, text_pivots=0, per="image", merge="nearest"), DART(layer=2, keep=0.4)),
        (DART(layer=0, keep=0.2, per="image"), FastV(layer=1, keep=0.4)),
        (DART(layer=1, keep=0.2), DART(layer=1, keep=0.4, text_pivots=0, pivot="key_min")),
        (DART(layer=1, keep=0.2), DART(layer=3, keep=0.2, merge="nearest")),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_teacher_with_a_reduction_of_its_own(name: str, student: Any, teacher: Any) -> None:
    """The teacher is the model with that reduction alone, and the student is as without it."""
    model, batch = adapted(name), batch_of(name, labels=True)
    with attach(model.eval(), teacher, output="compact") as attached:
        expected = forward_supervised(model, attached, batch, batch).logits.detach()
    with attach(model.train(), student, output="compact") as attached:
        alone = forward_supervised(model, attached, batch, batch)
        gradients = gradients_of(model, alone, expected)
        both, appended = forward_with_teacher(model, attached, batch, batch, [teacher])
        torch.testing.assert_close(appended, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert not appended.requires_grad and not torch.allclose(expected, alone.logits, atol=1e-3)
        for key, gradient in gradients_of(model, both, appended).items():
            torch.testing.assert_close(gradient, gradients[key], rtol=1e-3, atol=1e-4)
        again = forward_supervised(model, attached, batch, batch)
        torch.testing.assert_close(again.logits, alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (DART(layer=0, keep=0.4), "layer=0 is before the student's first, 1"),
        (DART(layer=99, keep=0.4), "layer=99: the model has"),
        (DART(layer=1, keep=0.4, per="image"), "does not read where images begin"),
        (Learned(layer=1, keep=0.4), "needs scorer"),
    ],
)
def test_teacher_that_cannot_run_in_the_same_forward(teacher: Any, message: str) -> None:
    with (
        attach(adapted("llava"), DART(layer=1, keep=0.2)) as attached,
        pytest.raises(ValueError, match=message),
        attached.with_teacher(teacher),
    ):
        pass
