"""Embeddings instead of ids: with the mask of the visual tokens, everything is as with ids; without it, a reduction is
refused and keep-all is the plain model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import DART, FastV, KeepAll, Pooling, Random, attach
from dart_train.models.structure import find_parts
from tests.laws.cases import batch_of, model_of

NAMES = ("llava", "llava_next", "internvl", "idefics3", "gemma3")
DART8 = DART(keep=8, image_pivots=2, text_pivots=2)


def with_embeddings(name: str, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch with `inputs_embeds`, and the mask of its visual tokens."""
    model, inputs = model_of(name), dict(batch)
    ids = inputs.pop("input_ids")
    visual = torch.isin(ids, torch.tensor(find_parts(model).visual_ids))
    return {**inputs, "inputs_embeds": model.get_input_embeddings()(ids).detach()}, visual


def embedded_images(name: str, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The batch as text alone, with the embeddings of images already in place."""
    model, found = model_of(name), list[Tensor]()
    inputs, visual = with_embeddings(name, batch)
    hook = find_parts(model).text.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return {"attention_mask": inputs["attention_mask"], "inputs_embeds": found[0]}, visual


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", ["expand", "compact"])
def test_loss_and_gradients_are_those_of_ids(name: str, output: Any) -> None:
    model, batch = model_of(name), dict(batch_of(name, labels=True))
    labels, found = batch.pop("labels"), []
    inputs, visual = with_embeddings(name, batch)
    weight = find_parts(model).layers[0].self_attn.q_proj.weight
    with attach(model, DART8, output=output) as attached:
        for given in (batch, inputs):
            if given is inputs:
                attached.expect(visual=visual)
            loss = model(**given, labels=labels, use_cache=False).loss
            assert attached.last is not None and max(attached.last.visual_after) <= 8
            found.append((loss.detach(), torch.autograd.grad(loss, weight)[0], attached.last.mask))
    assert torch.equal(found[0][2], found[1][2])
    torch.testing.assert_close(found[0][:2], found[1][:2])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma3"])  # its generate takes no embeddings
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_is_that_of_ids(name: str, beams: int) -> None:
    model, batch = model_of(name), batch_of(name)
    inputs, visual = with_embeddings(name, batch)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "num_beams": beams}
    with torch.no_grad(), attach(model, DART8) as attached:
        wanted = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        attached.expect(visual=visual)
        answers = model.generate(**inputs, **options)
        assert attached.last is not None and max(attached.last.visual_after) <= 8
    assert torch.equal(answers, wanted)


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_embeddings_of_images_need_no_pixels(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    inputs, visual = embedded_images(name, batch)
    with torch.no_grad(), attach(model, DART8) as attached:
        wanted = model(**batch).logits
        attached.expect(visual=visual)
        logits = model(**inputs).logits
        assert attached.last is not None
        mask = attached.last.mask
        torch.testing.assert_close(logits[mask], wanted[mask])
        model(**inputs)  # the mask was that of one forward: this one is text
        assert attached.last is None


@pytest.mark.parametrize("name", NAMES)
def test_keep_all_is_the_plain_model_without_a_mask(name: str) -> None:
    model, batch = model_of(name), batch_of(name)
    inputs, _ = with_embeddings(name, batch)
    with torch.no_grad():
        wanted = model(**inputs).logits
        with attach(model, KeepAll(layer=2)):
            logits = model(**inputs).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[real], wanted[real])


def test_prefetched_ids_serve_methods_that_need_them() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    inputs, visual = with_embeddings("llava", batch)
    for method in (Pooling(keep=9), Random(keep=8), FastV(keep=8, per="image")):
        with torch.no_grad(), attach(model, method) as attached:
            wanted = model(**batch).logits
            attached.prefetch_batch(**batch)
            torch.testing.assert_close(model(**inputs).logits, wanted)
    with attach(model, Pooling(keep=9)) as attached, pytest.raises(ValueError, match=r"prefetch_batch\(input_ids"):
        attached.expect(visual=visual)
        model(**inputs)


def test_missing_and_wrong_masks_are_refused_with_the_remedy() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    inputs, visual = with_embeddings("llava", batch)
    with attach(model, DART8) as attached:
        with pytest.raises(ValueError, match=r"needed to find the visual tokens.*expect\(visual=mask\)"):
            model(**inputs)
        with pytest.raises(ValueError, match=r"mask of shape \(3, 1\), but embeddings of"):
            attached.expect(visual=visual[:, :1])
            model(**inputs)
        for wrong in ({}, {"visual": visual, "input_ids": batch["input_ids"]}):
            with pytest.raises(ValueError, match="takes either visual"):
                attached.expect(**wrong)
