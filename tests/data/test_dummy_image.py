"""A text-only batch runs the vision tower on a dummy image; its loss and gradients do not change."""

import copy

import pytest
import torch

from dart_train.data.collator import dummy_inputs
from dart_train.hooks.dummy_image import attach_dummy_image
from tests.zoo import FAMILIES, make_batch


def step(model, batch):
    """(loss, gradients by name) of one training step."""
    model.zero_grad(set_to_none=True)
    loss = model(**batch).loss
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_dummy_image_does_not_change_loss_or_gradients(name):
    model, text = FAMILIES[name].model().train(), make_batch(name, (0, 0), "right", labels=True)
    assert "pixel_values" not in text
    loss, gradients = step(model, text)
    with attach_dummy_image(model, dummy_inputs(FAMILIES[name].processor())):
        loss_with, gradients_with = step(model, text)
    assert torch.equal(loss, loss_with)
    for parameter, gradient in gradients_with.items():
        assert torch.equal(gradient, gradients.get(parameter, torch.zeros_like(gradient))), parameter
    assert gradients.keys() < gradients_with.keys()  # the tower took part


@pytest.mark.parametrize("name", FAMILIES)
def test_dummy_image_uses_weights_in_the_order_of_a_batch_with_images(name):
    """ZeRO-3 gathers a module's weights when its turn comes, and all ranks must gather in one order."""
    model = FAMILIES[name].model().train()
    attach_dummy_image(model, dummy_inputs(FAMILIES[name].processor()))
    order: list[str] = []  # hooks that come after ours, as DeepSpeed's do
    for path, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda *_, path=path: order.append(f"forward {path}"))
            module.register_full_backward_pre_hook(lambda *_, path=path: order.append(f"backward {path}"))
    _, shown = step(model, make_batch(name, (1, 1), "right", labels=True))
    with_images = list(dict.fromkeys(order))
    order.clear()
    _, dummy = step(model, make_batch(name, (0, 0), "right", labels=True))
    assert shown.keys() == dummy.keys()
    assert list(dict.fromkeys(order)) == with_images


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "idefics3"])
def test_dummy_image_is_used_by_text_only_training_batches_only(name):
    model = FAMILIES[name].model()
    batches = [make_batch(name, (1, 0), labels=True), make_batch(name, (0, 0), labels=True)]
    calls = []
    model.model.get_image_features = _counted(model.model.get_image_features, calls)
    with attach_dummy_image(model, dummy_inputs(FAMILIES[name].processor())):
        model.train()
        model(**batches[0])
        assert len(calls) == 1
        model(**batches[1])
        assert len(calls) == 2
        model.eval()
        model(**batches[1])
        assert len(calls) == 2
    model.train()
    model(**batches[1])
    assert len(calls) == 2


def _counted(function, calls):
    import functools

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        calls.append(1)
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("reentrant", [True, False])
def test_dummy_image_with_gradient_checkpointing_and_frozen_parts(reentrant):
    name = "qwen2_vl"
    model, text = FAMILIES[name].model().train(), make_batch(name, (0, 0), "right", labels=True)
    model.model.visual.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(False)
    loss, gradients = step(model, text)
    with attach_dummy_image(model, dummy_inputs(FAMILIES[name].processor())):
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss_with, gradients_with = step(model, text)
    assert torch.allclose(loss, loss_with)
    assert gradients.keys() == gradients_with.keys()
    for parameter, gradient in gradients.items():
        assert torch.allclose(gradients_with[parameter], gradient, atol=1e-6), parameter


def test_removing_the_dummy_image_restores_the_model():
    model = FAMILIES["llava"].model()
    before = _state(model)
    attach_dummy_image(model, dummy_inputs(FAMILIES["llava"].processor())).remove()
    assert _state(model) == before


def _state(model):
    return {
        name: (sorted(module.__dict__), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


def test_dummy_image_refuses_a_model_or_inputs_without_images():
    with pytest.raises(NotImplementedError, match=r"has no `\.model.get_image_features`"):
        attach_dummy_image(torch.nn.Linear(2, 2), {})
    with pytest.raises(ValueError, match="expected pixel_values among them"):
        attach_dummy_image(copy.copy(FAMILIES["llava"].model()), {"pixels": torch.zeros(1)})
