"""The most memory that a piece of work holds at once, beyond what was held before it."""

from __future__ import annotations

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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    events = profile.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        held += change
        most = max(most, held)
    return most
