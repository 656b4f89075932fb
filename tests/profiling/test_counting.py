"""Counted FLOPs and bytes, peak memory, KV cache bytes, and the scene of a selection."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dart_train.profiling.device import DevicePeak
from dart_train.profiling.memory import kv_cache_bytes, peak_memory
from dart_train.profiling.op_count import count_ops
from dart_train.profiling.selection_scene import TEXT, SelectionScene, tile_grids

CPU = torch.device("cpu")
PEAK = DevicePeak(1e9, 1e9)


def test_product_is_counted_with_what_it_reads_and_writes() -> None:
    a, b = torch.randn(8, 16), torch.randn(16, 32)
    count = count_ops(lambda: (a @ b).t(), DevicePeak(1e6, 1e3))
    assert count.flops == 2 * 8 * 16 * 32 and count.bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32)
    assert count.seconds == count.bytes / 1e3


def test_causal_attention_counts_half() -> None:
    q = torch.randn(1, 2, 64, 16)
    attend = torch.nn.functional.scaled_dot_product_attention
    full = count_ops(lambda: attend(q, q, q), PEAK).flops
    assert full == 4 * 2 * 64 * 64 * 16
    assert count_ops(lambda: attend(q, q, q, is_causal=True), PEAK).flops == full / 2


def test_peak_memory_is_what_is_allocated_at_once() -> None:
    def workload() -> None:
        first = torch.ones(1000, 1000)
        second = first + 1
        del first
        second.sum()

    assert peak_memory(workload, CPU) == pytest.approx(8e6, rel=0.01)


def test_kv_cache_bytes_count_storages_once() -> None:
    storage = torch.zeros(20)
    layer = SimpleNamespace(keys=storage[:4], values=storage[4:8])
    assert kv_cache_bytes(SimpleNamespace(layers=[layer])) == 80  # what is allocated, not what is used


def test_scene_is_one_image_with_the_prompt_after_it() -> None:
    groups = SelectionScene.draw(100, 3, 256, CPU, torch.float32).groups
    assert groups.sizes == (100,) * 3 and groups.prompt_sizes == (TEXT,) * 3 and groups.row_of == (0, 1, 2)
    assert groups.last.tolist() == [139] * 3


@pytest.mark.parametrize(
    ("tokens", "grid"), [(576, [(24, 24)]), (2880, [(24, 24)] * 5), (64, [(8, 8)]), (96, [(8, 12)])]
)
def test_tile_grids_hold_every_token(tokens: int, grid: list[tuple[int, int]]) -> None:
    assert tile_grids(tokens) == grid
