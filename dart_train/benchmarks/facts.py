"""Where a measurement was made: without it, a number means nothing."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers

Facts = dict[str, str | int]


def facts_of(device: torch.device, dtype: torch.dtype) -> Facts:
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "load before": load(),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _cpu_model() or platform.processor() or platform.machine()


def _cpu_model() -> str | None:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def load() -> str:
    """How many processes wanted to run in the last minute, ours included: whether the machine was quiet."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not known"
