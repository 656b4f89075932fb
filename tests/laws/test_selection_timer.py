"""The time of a selection is measured on request only."""

from __future__ import annotations

import time

import pytest
import torch

from dart_train import DART, attach
from dart_train.hooks.observers import SelectionTimer
from tests.laws.cases import batch_of, model_of


def test_selection_seconds_are_measured_on_request_and_less_than_the_forward() -> None:
    model, batch = model_of("llava"), batch_of("llava")
    with torch.no_grad(), attach(model, DART(keep=8)) as attached:
        model(**batch)
        assert attached.selection_seconds() == 0
        attached.time_selection()
        begun = time.perf_counter()
        model(**batch)
        forward_seconds = time.perf_counter() - begun
        assert 0 < attached.selection_seconds() < forward_seconds
        assert attached.selection_seconds() == 0
        attached.time_selection(False)
        model(**batch)
        assert attached.selection_seconds() == 0


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
