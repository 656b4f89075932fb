"""Memory: the peak of a workload above what was allocated before it, and the bytes of a KV cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .timing import Workload, synchronize


def peak_memory(workload: Workload, device: torch.device) -> int:
    """Bytes. On a GPU the allocator's own peak; on a CPU the sum over the allocations that the profiler recorded."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        workload()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        profile.start()
    try:
        workload()
    finally:
        with _silent_stderr():
            profile.stop()
    profiler: Any = profile.profiler
    events = profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    allocated = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        allocated += change
        peak = max(peak, allocated)
    return peak


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """The profiler's C++ code writes to file descriptor 2 when it starts and stops, at any log level."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def kv_cache_bytes(cache: Any) -> int:
    """Allocated bytes: the storages of all keys and values of a transformers cache, each once."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())
