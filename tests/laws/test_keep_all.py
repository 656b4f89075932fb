"""Keep-all with the hooks attached is the plain model."""

from __future__ import annotations

import pytest
import torch

from dart_train import DART, KeepAll, attach
from tests.fixtures.reference_forward import first_difference
from tests.laws.cases import IMAGES, KERNELS, NAMES, ROUNDING, batch_of, model_of, new_tokens

LEFT_ROUNDING = 3e-4  # left padding: the reduction counts positions from the mask, the plain forward from 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_keep_all_changes_no_logit_and_no_loss(name: str, attn: str, side: str) -> None:
    model, batch = model_of(name, attn), batch_of(name, side=side, labels=True)
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        plain = model(**batch)
        with attach(model, KeepAll()) as attached:
            kept = model(**batch)
    assert attached.last is not None and attached.last.visual_after == attached.last.visual_before
    assert kept.logits.shape == plain.logits.shape
    assert first_difference(kept.logits, plain.logits, real) < (LEFT_ROUNDING if side == "left" else ROUNDING)
    torch.testing.assert_close(kept.loss, plain.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output", ["expand", "compact"])
@pytest.mark.parametrize("name", NAMES)
def test_keep_all_changes_no_gradient(name: str, output: str) -> None:
    model, batch = model_of(name), batch_of(name, side="right", labels=True)
    plain = gradients(model, batch)
    with attach(model, KeepAll(), output=output):
        kept = gradients(model, batch)
    assert plain.keys() == kept.keys()
    for parameter in plain:
        torch.testing.assert_close(kept[parameter], plain[parameter], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_keep_all_changes_no_generated_token(name: str, layer: int, beams: int) -> None:
    model, batch = model_of(name), batch_of(name)
    plain = new_tokens(model, batch, num_beams=beams)
    with attach(model, KeepAll(layer=layer)):
        assert torch.equal(new_tokens(model, batch, num_beams=beams), plain)


@pytest.mark.parametrize("images", IMAGES)
def test_image_smaller_than_the_budget_is_kept_entirely(images: tuple[int, ...]) -> None:
    from dart_train import DART

    model, batch = model_of("llava"), batch_of("llava", images, "right")
    with torch.no_grad():
        plain = model(**batch).logits
        with attach(model, DART(keep=1000)) as attached:
            kept = model(**batch).logits
    assert attached.last is not None
    assert attached.last.visual_after == attached.last.visual_before
    assert first_difference(kept, plain, batch["attention_mask"].bool()) < ROUNDING


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_embeddings_without_ids_keep_all_tokens() -> None:
    """A reduction needs the ids, to find the visual tokens; to keep all of them nothing has to be found."""
    model, batch = model_of("llava"), dict(batch_of("llava", (1, 2)))
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids")).detach()
    with torch.no_grad():
        plain = model(**batch).logits
        with attach(model, KeepAll()):
            assert torch.equal(model(**batch).logits, plain)
        with attach(model, DART(keep=8)), pytest.raises(ValueError, match="without input_ids"):
            model(**batch)
