"""What the choice needs to know of a batch comes to the host at once; told ahead, nothing comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dart_train import attach
from dart_train.hooks import plan_batch as takeoff
from dart_train.reduction.token_groups import TokenGroups
from tests.laws.cases import NAMES, batch_of, model_of, reducer_of

WAITS = ("tolist", "item", "numpy", "nonzero", "unique", "__bool__", "__int__", "__float__", "__index__")


class Away(Tensor):
    """Says that it lies on a GPU: its numbers cannot be read but by bringing it over, which is counted."""

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
    monkeypatch.setattr(takeoff, "upload", lambda x, device: x)
    monkeypatch.setattr(TokenGroups, "to", lambda self, device: self)
    Away.transfers = 0
    yield


def away(batch: dict[str, Tensor]) -> dict[str, Any]:
    return {name: x.as_subclass(Away) for name, x in batch.items()}


@pytest.mark.usefixtures("nothing_goes_back")
def test_a_tensor_that_is_away_cannot_be_read() -> None:
    x = torch.arange(3).as_subclass(Away)
    for read in (x.tolist, x[0].item, (x > 1).nonzero, lambda: bool((x > 1).any()), lambda: int(x[0])):
        with pytest.raises(AssertionError, match="waits for the device"):
            read()
    assert torch.cat([x, x]).device.type == "cuda" and Away.transfers == 0
    assert type(x.cpu()) is Tensor and Away.transfers == 1


@pytest.mark.usefixtures("nothing_goes_back")
@pytest.mark.parametrize("per", ["sample", "image"])
@pytest.mark.parametrize("method", ["dart", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_one_transfer_tells_everything_and_none_is_needed_when_told(name: str, method: str, per: Any) -> None:
    batch = batch_of(name, labels=True)
    inputs = away({key: x for key, x in batch.items() if key != "labels"})
    with attach(model_of(name), reducer_of(method, 7, per=per)) as attached:
        plain = takeoff.plan_batch(attached._engine, {k: x for k, x in batch.items() if k != "labels"}, batch["labels"])
        flight = takeoff.plan_batch(attached._engine, inputs, batch["labels"].as_subclass(Away))
        assert Away.transfers == 1
        attached.expect(**batch)
        told = takeoff.plan_batch(attached._engine, inputs, batch["labels"].as_subclass(Away))
        assert Away.transfers == 1
    assert plain is not None and flight is not None and told is not None
    assert plain.pools is not None and flight.pools is not None and told.pools is not None
    assert plain.pools.spans == flight.pools.spans == told.pools.spans
    assert plain.pools.prompt_sizes == flight.pools.prompt_sizes == told.pools.prompt_sizes
    assert plain.grid_shapes == flight.grid_shapes == told.grid_shapes


@pytest.mark.usefixtures("nothing_goes_back")
def test_positions_that_may_tell_of_packing_come_along() -> None:
    batch = batch_of("llava", (1,))
    inputs = {key: x for key, x in batch.items() if key != "attention_mask"}
    positions = torch.arange(batch["input_ids"].shape[1])[None]
    with attach(model_of("llava"), reducer_of("dart")) as attached:
        takeoff.plan_batch(attached._engine, away({**inputs, "position_ids": positions}), None)
        assert Away.transfers == 1
        with pytest.raises(NotImplementedError, match="packed sequences"):
            takeoff.plan_batch(attached._engine, away({**inputs, "position_ids": positions % 20}), None)
