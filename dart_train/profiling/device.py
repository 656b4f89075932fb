"""The device of a measurement: its name and load, the best FLOPs and bytes a second it reached, its free memory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
import transformers

from .timing import Workload, synchronize, time_once

DeviceFacts = dict[str, str | int]
_MATRIX_SIDE = {"float32": 2048, "bfloat16": 8192, "float16": 8192}  # of the product that measures a GPU's peak
_CPU_MATRIX_SIDE = 1536
_COPIED_BYTES = 1 << 28
_ATTEMPTS = 8


def device_facts(device: torch.device, dtype: torch.dtype) -> DeviceFacts:
    """What belongs next to every measured number."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "load before": load_average(),
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


def load_average() -> str:
    """Processes that were ready to run, mean of the last minute, this one included: whether the machine was idle."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "not known"


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True)
class DevicePeak:
    """The highest rates that this device was measured at: FLOPs and bytes a second."""

    flops: float
    bytes: float


def measure_peak(device: torch.device, dtype: torch.dtype) -> DevicePeak:
    """The best of several attempts at one large matrix product, and at one large copy."""
    side = _MATRIX_SIDE[str(dtype).removeprefix("torch.")] if device.type == "cuda" else _CPU_MATRIX_SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(_COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    product, copy = _fastest(lambda: a @ b, device), _fastest(lambda: target.copy_(source), device)
    return DevicePeak(2 * side**3 / product, 2 * _COPIED_BYTES / copy)


def _fastest(workload: Workload, device: torch.device) -> float:
    synchronize(device)
    return min(time_once(workload, device) for _ in range(_ATTEMPTS))
