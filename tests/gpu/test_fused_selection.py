"""The Triton selection on a GPU chooses what the PyTorch one chooses, and does not wait."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from dart_train.kernels.fused_dart import FusedDART
from dart_train.profiling.selection_scene import SelectionScene
from dart_train.reduction import DART

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
]


@pytest.mark.parametrize("rule", ["exact", "paper"])
@pytest.mark.parametrize(("tokens", "batch"), [(64, 3), (576, 16), (2880, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_selection_is_that_of_pytorch_on_a_gpu(dtype: torch.dtype, tokens: int, batch: int, rule: str) -> None:
    """Except where two cosines differ in their last bit only, because sums have another order."""
    scene = SelectionScene.draw(tokens, batch, 1024, torch.device("cuda"), dtype)
    plain, fused = (kind(keep=tokens // 9, rule=rule) for kind in (DART, FusedDART))
    expected = plain.select(scene.context(plain))
    fused.select(scene.context(fused))  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = fused.select(scene.context(fused))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.sum(1), expected.sum(1))
    assert (found != expected).float().mean() <= 0.002
