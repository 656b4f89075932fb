"""The reduction together with PEFT, torch.compile, methods of other packages, videos and prefetched batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from dart_train import DART, FastV, Random, attach, from_config
from tests.fixtures.reference_forward import first_difference, masked_logits
from tests.laws.cases import NAMES, ROUNDING, batch_of, model_of, new_tokens
from tests.zoo import FAMILIES, FAMILIES_WITH_VIDEO, make_video_batch

LORA = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], lora_dropout=0.0, init_lora_weights=False)


@pytest.mark.parametrize("first", ["attach", "peft"])
@pytest.mark.parametrize("name", NAMES)
def test_lora_keys_are_observed_in_either_order_of_attachment(name: str, first: str) -> None:
    """A hook on `k_proj` that was set before PEFT would miss the LoRA part."""
    model, batch = FAMILIES[name].model(), batch_of(name, labels=True)
    torch.manual_seed(0)
    if first == "peft":
        model = get_peft_model(model, LORA)
    attached = attach(model, DART(keep=8), output="compact")
    if first == "attach":
        model = get_peft_model(model, LORA)
    model(**batch).loss.backward()
    assert attached.last is not None
    keep = attached.last.mask
    with attached.paused(), torch.no_grad():
        truth = masked_logits(model.get_base_model(), batch, [(2, keep)])
    attached.remove()
    with torch.no_grad(), attach(model, DART(keep=8)) as again:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"} | {"labels": batch["labels"]}).logits
    assert again.last is not None and torch.equal(again.last.mask, keep)
    assert first_difference(logits, truth, keep) < ROUNDING
    adapters = [p for n, p in model.named_parameters() if "lora_" in n and "vision" not in n and "visual" not in n]
    assert adapters and all(p.grad is not None for p in adapters)


@pytest.mark.parametrize("reducer", [DART(keep=9), FastV(keep=9), Random(keep=9, per="image")])
@pytest.mark.parametrize("name", FAMILIES_WITH_VIDEO)
def test_videos_are_reduced(name: str, reducer: Any) -> None:
    model, batch = model_of(name), make_video_batch(name)
    with torch.no_grad(), attach(model, reducer) as attached:
        logits = model(**batch).logits
        kept = attached.last
        assert kept is not None and sum(kept.visual_after) < sum(kept.visual_before)
        tokens = new_tokens(model, batch)
        assert torch.equal(tokens, new_tokens(model, batch, use_cache=False))
    with torch.no_grad():
        truth = masked_logits(model, batch, [(2, kept.mask)])
    assert first_difference(logits, truth, kept.mask) < ROUNDING


@pytest.mark.parametrize("stages", [1, 2])
def test_method_of_another_package_obeys_the_same_laws(stages: int) -> None:
    model, batch = model_of("llava"), batch_of("llava")
    options = [{"method": "tests.fixtures.external_reducer:EveryOther", "keep": 16}]
    options += [{"method": "tests.fixtures.external_reducer:EveryOther", "keep": 4, "layer": 3}] * (stages - 1)
    reducers = [from_config(option) for option in options]
    with torch.no_grad(), attach(model, reducers) as attached:
        logits, kept = model(**batch).logits, attached.last
    assert kept is not None
    plan = [(r.layer, mask) for r, mask in zip(reducers, kept.stages, strict=True)]
    with torch.no_grad():
        assert first_difference(logits, masked_logits(model, batch, plan), kept.mask) < ROUNDING
    assert reducers[0].to_dict()["method"] == "tests.fixtures.external_reducer:EveryOther"
    assert from_config(reducers[0].to_dict()) == reducers[0]


def test_method_that_keeps_another_number_than_its_count_is_refused() -> None:
    model = model_of("llava")
    with (
        pytest.raises(ValueError, match=r"kept \[1\] tokens a group; its count\(\) promised \[8\]"),
        attach(model, from_config({"method": "tests.fixtures.external_reducer:Miscounts", "keep": 8})),
    ):
        model(**batch_of("llava", (1,)))


def test_prefetched_batch_gives_the_same_selection() -> None:
    model, batch = model_of("llava"), batch_of("llava", labels=True)
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        loss = model(**batch).loss
        attached.prefetch_batch(batch["input_ids"], batch["attention_mask"], batch["labels"])
        torch.testing.assert_close(model(**batch).loss, loss)
        attached.prefetch_batch(batch["input_ids"][:1], batch["attention_mask"][:1])
        with pytest.raises(ValueError, match=r"prefetch_batch\(\) was given a batch of shape"):
            model(**batch)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["attach first", "compile first", "run compiled first"])
@pytest.mark.parametrize("guards", [True, False])
def test_torch_compile_gives_the_same_reduction(guards: bool, order: str) -> None:
    """In either order of compile and attach, although Dynamo does not check by default whether hooks were added."""
    torch._dynamo.reset()
    model, batch, reducer = FAMILIES["llava"].model(), batch_of("llava"), FastV(keep=8)
    with torch.no_grad(), torch._dynamo.config.patch(skip_nnmodule_hook_guards=not guards):
        full = model(**batch).logits
        with attach(model, reducer) as attached:
            plain, kept = model(**batch).logits, attached.last
        attached = attach(model, reducer) if order == "attach first" else attached
        compiled = torch.compile(model, backend="eager")
        if order == "run compiled first":
            compiled(**batch)
        attached = attach(model, reducer) if order != "attach first" else attached
        torch.testing.assert_close(compiled(**batch).logits, plain, rtol=1e-4, atol=1e-4)
        assert kept is not None and attached.last is not None
        assert torch.equal(attached.last.mask, kept.mask)
        attached.remove()
        torch.testing.assert_close(compiled(**batch).logits, full, rtol=1e-4, atol=1e-4)
