"""The laws on a GPU: bfloat16, every available kernel, and no synchronisation.

Tolerances are relative to what the plain model itself loses in bfloat16. Run with `pytest -m gpu tests/gpu`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dart_train import DART, REDUCERS, KeepAll, Reducer, attach
from dart_train.hooks.batch_plan import plan_batch
from dart_train.hooks.forward_state import ForwardState
from tests.fixtures.reference_forward import masked_logits
from tests.laws.cases import NAMES, batch_of, reducer_of
from tests.zoo import FAMILIES

HAS_GPU = torch.cuda.is_available()
HAS_FLASH = importlib.util.find_spec("flash_attn") is not None
DEVICE = "cuda"
needs_flash = pytest.mark.skipif(not HAS_FLASH, reason="flash-attn is not installed")
KERNELS = ("sdpa", pytest.param("flash_attention_2", marks=needs_flash))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU on this machine")]
SLACK = 3.0


def on_device(name: str, attn: str, dtype: torch.dtype) -> Any:
    return FAMILIES[name].model(attn).to(DEVICE, dtype)


def batch_on_device(name: str, dtype: torch.dtype, labels: bool = False) -> dict[str, torch.Tensor]:
    batch = batch_of(name, labels=labels)
    return {k: x.to(DEVICE, dtype) if x.is_floating_point() else x.to(DEVICE) for k, x in batch.items()}


@torch.no_grad()
def loss_of_precision(name: str, batch: dict[str, torch.Tensor], attn: str) -> tuple[torch.Tensor, float]:
    """The plain model's float32 logits, and how far bfloat16 moves them, over real tokens."""
    wide = {k: x.float() if x.is_floating_point() else x for k, x in batch.items()}
    exact = on_device(name, "sdpa", torch.float32)(**wide).logits
    rounded = on_device(name, attn, torch.bfloat16)(**batch).logits.float()
    real = batch["attention_mask"].bool()
    return exact, float((rounded - exact)[real].abs().mean())


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_keep_all_loses_no_more_than_bfloat16_does(name: str, attn: str) -> None:
    batch = batch_on_device(name, torch.bfloat16)
    exact, allowed = loss_of_precision(name, batch, attn)
    model = on_device(name, attn, torch.bfloat16)
    with torch.no_grad(), attach(model, KeepAll()) as attached:
        logits = model(**batch).logits.float()
    assert attached.last is not None
    assert (logits - exact)[batch["attention_mask"].bool()].abs().mean() <= SLACK * allowed


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_reduced_forward_is_the_masked_one(name: str, attn: str) -> None:
    batch = batch_on_device(name, torch.bfloat16)
    _, allowed = loss_of_precision(name, batch, attn)
    model = on_device(name, attn, torch.bfloat16)
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        logits = model(**batch).logits.float()
    assert attached.last is not None
    keep = attached.last.mask.cpu()
    wide = {k: x.float().cpu() if x.is_floating_point() else x.cpu() for k, x in batch.items()}
    with torch.no_grad():
        truth = masked_logits(FAMILIES[name].model(), wide, [(2, keep)])
    assert (logits.cpu() - truth)[keep].abs().mean() <= SLACK * allowed


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_training_reaches_every_parameter_that_the_plain_model_reaches(name: str, attn: str) -> None:
    model, batch = on_device(name, attn, torch.bfloat16), batch_on_device(name, torch.bfloat16, labels=True)
    model(**batch).loss.backward()
    plain = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with attach(model, DART(keep=8), output="compact"):
        model(**batch).loss.backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == plain
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Inside a selection every synchronisation is an error."""
    calls: list[int] = []
    reduce = ForwardState.reduce

    def strict(*args: Any) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return reduce(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            calls.append(1)

    monkeypatch.setattr(ForwardState, "reduce", strict)
    yield calls


@pytest.mark.parametrize("merge", ["none", "nearest"])
@pytest.mark.parametrize("method", REDUCERS)
def test_no_selection_synchronises_with_the_gpu(method: str, merge: Any, watched: list[int]) -> None:
    reducer: Reducer = reducer_of(method, merge=merge)
    for name in ("llava", "qwen2_5_vl"):
        model, batch = on_device(name, "sdpa", torch.bfloat16), batch_on_device(name, torch.bfloat16)
        with torch.no_grad(), attach(model, reducer):
            model(**batch)  # the first forward also loads kernels; a second forward must not wait either
            model(**batch)
    assert len(watched) == 4


def test_prefetched_batch_needs_no_synchronisation() -> None:
    model, batch = on_device("llava", "sdpa", torch.bfloat16), batch_on_device("llava", torch.bfloat16)
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        model(**batch)
        host = {k: x.cpu() for k, x in batch.items()}
        attached.prefetch_batch(host["input_ids"], host["attention_mask"])
        prefetched = attached._engine.prefetched
        torch.cuda.set_sync_debug_mode("error")
        try:
            inputs = {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}
            plan = plan_batch(inputs, None, attached._engine.parts, attached.reducers, prefetched=prefetched)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert plan is not None and plan.groups is not None


@pytest.mark.parametrize("attn", KERNELS)
def test_cached_generation_equals_recomputation(attn: str) -> None:
    """In float32 (flash attention has none): in bfloat16 near ties would change the tokens."""
    dtype = torch.float32 if attn == "sdpa" else torch.bfloat16
    model, batch = on_device("llava", attn, dtype), batch_on_device("llava", dtype)
    options = {"do_sample": False, "max_new_tokens": 5, "suppress_tokens": [model.config.image_token_id]}
    with attach(model, DART(keep=8)):
        cached = model.generate(**batch, **options)
        again = model.generate(**batch, use_cache=False, **options)
    assert (cached == again).float().mean() >= (1.0 if attn == "sdpa" else 0.9)
