"""What the choice costs is noted only when somebody wants to know, and where it happens."""

from __future__ import annotations

import time

import pytest
import torch

from dart_train import DART, attach
from dart_train.hooks.observers import SelectionTimer
from tests.laws.cases import batch_of, model_of


def test_choices_are_timed_when_asked_for_and_never_longer_than_the_forward() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        model(**batch)
        assert attached.choosing_seconds() == 0
        attached.time_choices()
        begun = time.perf_counter()
        model(**batch)
        whole = time.perf_counter() - begun
        assert 0 < attached.choosing_seconds() < whole
        assert attached.choosing_seconds() == 0
        attached.time_choices(False)
        model(**batch)
        assert attached.choosing_seconds() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="events of a GPU, and there is none")
def test_on_a_gpu_the_device_is_timed_and_nothing_waits() -> None:
    watch, gpu = SelectionTimer(), torch.device("cuda")
    watch.on = True
    matrix = torch.randn(4096, 4096, device=gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with watch.running(gpu):
            for _ in range(20):
                matrix = matrix @ matrix * 1e-3
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.read() > 1e-4
