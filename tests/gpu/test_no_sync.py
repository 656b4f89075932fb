"""A training step and a prefill with a prefetched batch do not wait for the GPU.

transformers itself waits: it compares the number of image tokens with the features (which its own switch turns off),
looks for packed sequences in position ids, and some families read grids or masks back. The reduction adds nothing to
that; without those places of transformers nothing waits. Where there is no GPU, a stand-in device is tested instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from dart_train import DART, REDUCERS, Reducer, attach
from dart_train.profiling.timing import host_syncs
from tests.fixtures.stand_in_device import Remote, StandInDevice
from tests.laws.cases import NAMES, batch_of, reducer_of
from tests.zoo import FAMILIES

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
WORKS = ("training step", "prefill")
# gemma3's masks are made under vmap, where the stand-in's tensors become plain ones.
STAND_IN_NAMES = [name for name in NAMES if name != "gemma3"]


@pytest.fixture(autouse=True)
def image_tokens_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")


@pytest.fixture
def packing_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


def host_batch(name: str, work: str) -> dict[str, Tensor]:
    """One sample without padding, so that no mask is needed."""
    batch = dict(batch_of(name, (1,), labels=work == "training step"))
    assert bool(batch["attention_mask"].all())
    del batch["attention_mask"]
    return batch


def run(model: Any, batch: dict[str, Tensor], work: str) -> None:
    if work == "training step":
        model(**batch, use_cache=False).loss.backward()
    else:
        with torch.no_grad():
            model(**batch, use_cache=True, logits_to_keep=1)


@contextmanager
def reduced(model: Any, host: dict[str, Tensor], work: str, reducer: Reducer | None) -> Iterator[None]:
    """The reduction attached and its batch prefetched; None: the plain model."""
    with ExitStack() as stack:
        if reducer is not None:
            output: Any = "compact" if work == "training step" else "expand"
            stack.enter_context(attach(model, reducer, output=output)).prefetch_batch(**host)
        yield


def stand_in_syncs(name: str, work: str, reducer: Reducer | None) -> list[str]:
    model, host = FAMILIES[name].model("sdpa"), host_batch(name, work)
    with reduced(model, host, work, reducer), StandInDevice(model) as device:
        run(model, device.move(host), work)
    return device.syncs


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", STAND_IN_NAMES)
def test_reduction_adds_no_synchronisation_on_a_stand_in(name: str, work: str) -> None:
    plain = Counter(stand_in_syncs(name, work, None))
    assert Counter(stand_in_syncs(name, work, DART(keep=8))) - plain == Counter()


@pytest.mark.usefixtures("packing_is_not_looked_for")
@pytest.mark.parametrize("method", REDUCERS)
def test_no_synchronisation_at_all_on_a_stand_in(method: str) -> None:
    assert [stand_in_syncs("llava", work, reducer_of(method)) for work in WORKS] == [[], []]


def test_stand_in_notices_what_waits() -> None:
    layer = torch.nn.Linear(3, 3)
    x, repeats, mask = torch.ones(3), torch.tensor([1, 2, 3]), torch.tensor([True, False, True])
    waits: dict[str, Callable[[Any], Any]] = {
        "item": lambda x: x["x"][0].item(),
        "tolist": lambda x: layer(x["x"]).detach().tolist(),
        "__bool__": lambda x: bool(x["mask"].any()),
        "nonzero": lambda x: x["mask"].nonzero(),
        "__getitem__": lambda x: x["x"][x["mask"]],
        "repeat_interleave": lambda x: x["x"].repeat_interleave(x["repeats"]),
        "cpu from the device": lambda x: x["x"].cpu(),
        "to to the device": lambda x: torch.ones(3).to(x["x"].device),
        "tensor from the host": lambda x: torch.tensor([1, 2], device=x["x"].device),
        "of a weight": lambda x: layer.weight.sum().item(),
    }
    for name, wait in waits.items():
        with StandInDevice(layer) as device:
            wait(device.move({"x": x, "repeats": repeats, "mask": mask}))
        assert len(device.syncs) == 1, name
        assert name == "of a weight" or device.syncs[0].startswith(f"{name} at {__file__}")


def test_stand_in_lets_pass_what_does_not_wait() -> None:
    layer = torch.nn.Linear(3, 3)
    with StandInDevice(layer) as device:
        x = device.move({"x": torch.ones(2, 3)})["x"]
        made = torch.arange(2, device=x.device)
        sent = torch.ones(3).to(x.device, non_blocking=True)
        y = layer(x)[made].gather(1, x.argsort(1)) + sent + layer.weight.to(x.device)[0]
        y.masked_fill(x > 0, 0.0).sum().backward()
        assert isinstance(y, Remote) and y.device.type == made.device.type == sent.device.type == "cuda"
        assert torch.ones(2).tolist() == [1.0, 1.0] and torch.ones(1).device.type == "cpu"
    assert device.syncs == [] and layer.weight.grad is not None


def on_gpu(name: str, work: str) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    model, host = FAMILIES[name].model("sdpa").to("cuda", torch.bfloat16), host_batch(name, work)
    batch = {k: x.to("cuda", torch.bfloat16 if x.is_floating_point() else None) for k, x in host.items()}
    return model, host, batch


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", NAMES)
def test_reduction_adds_no_synchronisation(name: str, work: str) -> None:
    model, host, batch = on_gpu(name, work)
    counts = []
    for reducer in (None, DART(keep=8)):
        for _ in range(2):  # kernels that are loaded at their first use may wait
            with reduced(model, host, work, reducer):
                syncs = host_syncs(lambda: run(model, batch, work), torch.device("cuda"))
        counts.append(syncs)
    assert counts[1] <= counts[0]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("packing_is_not_looked_for")
@pytest.mark.parametrize("method", REDUCERS)
def test_no_synchronisation_in_a_training_step_and_a_prefill(method: str) -> None:
    for work in WORKS:
        model, host, batch = on_gpu("llava", work)
        weights = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        for strict in (False, True):
            with reduced(model, host, work, reducer_of(method)):
                torch.cuda.set_sync_debug_mode("error" if strict else "default")
                try:
                    run(model, batch, work)
                    if work == "training step":
                        weights.step()
                        weights.zero_grad()
                finally:
                    torch.cuda.set_sync_debug_mode("default")
