"""The most memory that a piece of work holds at once, beyond what was held before it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .timing import Job, synchronize


def peak_of(job: Job, device: torch.device) -> int:
    """Bytes, as the allocator counts them: on a GPU its own record, elsewhere the profiler's list of every one."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _silent():
        profile.start()
    try:
        job()
    finally:
        with _silent():
            profile.stop()
    recorder: Any = profile.profiler
    events = recorder.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        most = max(most, held)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler writes its starts and stops to the error stream itself, past Python and every log level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
