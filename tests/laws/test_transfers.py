"""A selection reads its batch on the host in one transfer, and in none when the batch was prefetched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import attach
from dart_train.hooks import Attached, batch_plan
from dart_train.hooks.answers import CallInputs
from dart_train.hooks.batch_plan import BatchPlan, plan_batch
from dart_train.reduction.token_groups import TokenGroups
from tests.laws.cases import NAMES, batch_of, model_of, reducer_of
from tests.zoo import FAMILIES

WAITS = ("tolist", "item", "numpy", "nonzero", "unique", "__bool__", "__int__", "__float__", "__index__")


class Away(Tensor):
    """Reports that it is on a GPU: its values can only be read by copying it to the CPU, which is counted."""

    transfers = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return torch.device("cuda")
        if name in WAITS:
            raise AssertionError(f"{name} waits for the device")
        if name == "cpu":
            Away.transfers += 1
            return args[0].as_subclass(Tensor)
        if name == "to":
            args = [x for x in args if not isinstance(x, torch.device)]
            return super().__torch_function__(func, types, args, kwargs) if len(args) > 1 else args[0]
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def nothing_goes_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(batch_plan, "upload", lambda x, device: x)
    monkeypatch.setattr(TokenGroups, "to", lambda self, device: self)
    Away.transfers = 0
    yield


def away(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: x.as_subclass(Away) for name, x in batch.items()}


@pytest.mark.usefixtures("nothing_goes_back")
def test_reading_a_remote_tensor_raises() -> None:
    x = torch.arange(3).as_subclass(Away)
    for read in (x.tolist, x[0].item, (x > 1).nonzero, lambda: bool((x > 1).any()), lambda: int(x[0])):
        with pytest.raises(AssertionError, match="waits for the device"):
            read()
    assert torch.cat([x, x]).device.type == "cuda" and Away.transfers == 0
    assert type(x.cpu()) is Tensor and Away.transfers == 1


def plan_of(attached: Attached, inputs: dict[str, Any], labels: Any = None, **own: Any) -> BatchPlan | None:
    engine, call = attached._engine, CallInputs(labels, **own)
    return plan_batch(inputs, labels, engine.parts, attached.reducers, None, engine.prefetched, call, engine.locator)


@pytest.mark.usefixtures("nothing_goes_back")
@pytest.mark.parametrize("per", ["sample", "image"])
@pytest.mark.parametrize("method", ["dart", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_one_transfer_reads_the_batch_and_a_prefetched_one_needs_none(name: str, method: str, per: Any) -> None:
    batch = batch_of(name, labels=True)
    here = {key: x for key, x in batch.items() if key != "labels"}
    inputs, labels = away(here), batch["labels"].as_subclass(Away)
    with attach(model_of(name), reducer_of(method, 7, per=per)) as attached:
        plain = plan_of(attached, here, batch["labels"])
        remote = plan_of(attached, inputs, labels)
        assert Away.transfers == 1
        attached.prefetch_batch(**batch)
        prefetched = plan_of(attached, inputs, labels)
        assert Away.transfers == 1
    assert plain is not None and remote is not None and prefetched is not None
    assert plain.groups is not None and remote.groups is not None and prefetched.groups is not None
    assert plain.groups.spans == remote.groups.spans == prefetched.groups.spans
    assert plain.groups.prompt_sizes == remote.groups.prompt_sizes == prefetched.groups.prompt_sizes
    assert plain.grid_shapes == remote.grid_shapes == prefetched.grid_shapes


@pytest.mark.usefixtures("nothing_goes_back")
@pytest.mark.parametrize("source", ["answer_mask", "prompt_lengths", "processor"])
def test_answers_are_found_without_another_transfer(source: str) -> None:
    batch = batch_of("llava", labels=True)
    inputs, answers = {key: x for key, x in batch.items() if key != "labels"}, batch["labels"] != -100
    before = (answers.cumsum(1) == 0) & batch["attention_mask"].bool()
    own = {"answer_mask": answers.long(), "prompt_lengths": before.sum(1)}
    own = away({name: x for name, x in own.items() if name == source})
    model = FAMILIES["llava"].model().train()
    with attach(model, reducer_of("dart", 7), processor=FAMILIES["llava"].processor(), strict=True) as attached:
        plain = plan_of(attached, inputs, batch["labels"])
        remote = plan_of(attached, away(inputs), **own)
    assert Away.transfers == 1
    assert plain is not None and plain.groups is not None and remote is not None and remote.groups is not None
    assert plain.groups.prompt_sizes == remote.groups.prompt_sizes


@pytest.mark.usefixtures("nothing_goes_back")
def test_positions_that_may_mark_packing_are_in_the_one_transfer() -> None:
    batch = batch_of("llava", (1,))
    inputs = {key: x for key, x in batch.items() if key != "attention_mask"}
    positions = torch.arange(batch["input_ids"].shape[1])[None]
    with attach(model_of("llava"), reducer_of("dart")) as attached:
        plan_of(attached, away({**inputs, "position_ids": positions}))
        assert Away.transfers == 1
        with pytest.raises(NotImplementedError, match="packed sequences"):
            plan_of(attached, away({**inputs, "position_ids": positions % 20}))


def test_prefetched_batch_is_used_by_the_next_forward_only() -> None:
    """A forward without images also uses it up."""
    model, batch = model_of("llava"), batch_of("llava", (1, 2))
    words = {name: batch_of("llava", (0, 0))[name] for name in ("input_ids", "attention_mask")}
    for first in (batch, words):
        with torch.no_grad(), attach(model, reducer_of("dart")) as attached:
            attached.prefetch_batch(**first)
            model(**first)
            assert attached._engine.prefetched is None
            model(**batch)
