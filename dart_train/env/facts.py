"""What this machine and this environment are: versions, devices, kernels, memory. No names of people or hosts."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

PACKAGES = (
    "dart-train", "torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "datasets", "safetensors",
    "pillow", "numpy", "torchvision", "flash-attn", "liger-kernel", "wandb", "tensorboard", "trl", "lmms-eval",
)  # fmt: skip
# Only those that change what a run does; never the whole environment, which holds keys.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WANDB_MODE", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME",
    "DS_ACCELERATOR", "DS_BUILD_OPS", "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True)
class Facts:
    python: str
    system: str
    cores: int
    versions: dict[str, str | None]  # None: not installed
    cuda: str | None  # what torch was built for; None: a CPU build
    gpus: tuple[Gpu, ...]
    nvcc: str | None
    shared_memory_gib: float | None  # None: there is no /dev/shm
    variables: dict[str, str]

    def has(self, package: str) -> bool:
        return self.versions.get(package) is not None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def gather() -> Facts:
    return Facts(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        versions={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        gpus=_gpus(),
        nvcc=shutil.which("nvcc"),
        shared_memory_gib=_shared_memory(),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    return tuple(_gpu(index) for index in range(torch.cuda.device_count()))


def _gpu(index: int) -> Gpu:
    told = torch.cuda.get_device_properties(index)
    capability = (told.major, told.minor)
    return Gpu(told.name, round(told.total_memory / 2**30, 1), capability, capability >= (8, 0))


def _shared_memory() -> float | None:
    try:
        return round(shutil.disk_usage("/dev/shm").total / 2**30, 2)
    except OSError:
        return None
