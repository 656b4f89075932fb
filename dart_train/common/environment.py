"""Combinations that are known to fail or to run slower than they could, each with what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch

# What a bug report needs, and what is known not to go well together.


# What this machine and this environment are: versions, devices, kernels, memory. No names of people or hosts.

PACKAGES = (
    "dart-train", "torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "datasets", "safetensors",
    "pillow", "numpy", "torchvision", "flash-attn", "liger-kernel", "wandb", "tensorboard", "trl", "lmms-eval",
)  # fmt: skip
# Only those that change what a run does; never the whole environment, which holds keys.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WANDB_MODE", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME",
    "DS_ACCELERATOR", "DS_BUILD_OPS", "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip

# Releases of transformers on which the tests passed: the first and the last minor release, and those between.
TESTED_TRANSFORMERS = ((5, 23), (5, 24))


# Those that training results depend on: recorded with every run and export.
RECORDED_PACKAGES = (
    "dart-train",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "datasets",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Python and the recorded packages; `not installed` for a missing one."""
    packages = {name: _version(name) or "not installed" for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **packages}


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


SMALL_SHARED_MEMORY = 1.0  # GiB; containers come with 64 MiB, and loader workers hand batches over through it
AMPERE = (8, 0)


def warnings_for(facts: Facts) -> list[str]:
    return [*_versions(facts), *_kernels(facts), *_device(facts), *_ranks(facts)]


def _versions(facts: Facts) -> Iterator[str]:
    if facts.has("transformers") and (note := version_note(facts.versions["transformers"])):
        yield note
    if _before(facts, "deepspeed", (0, 19)):
        yield _old(facts, "deepspeed", "0.19", "older ones do not know transformers 5")
    if _before(facts, "peft", (0, 21)):
        yield _old(facts, "peft", "0.21", "older ones do not know transformers 5")
    if facts.has("torchvision") and _build(facts, "torch") != _build(facts, "torchvision"):
        yield (
            f"torch {facts.versions['torch']} and torchvision {facts.versions['torchvision']} are builds for different "
            "devices: importing torchvision fails; install both from one index, or leave torchvision out (pictures "
            "are then prepared with Pillow)"
        )


def version_note(version: str | None = None) -> str | None:
    """One sentence when transformers (the installed one by default) is outside the tested range, else None."""
    version = version or metadata.version("transformers")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if TESTED_TRANSFORMERS[0] <= numbers <= TESTED_TRANSFORMERS[1]:
        return None
    first, last = (".".join(map(str, release)) for release in TESTED_TRANSFORMERS)
    return (
        f"transformers {version} is installed; dart_train was tested with {first} to {last}, and other releases may "
        f"call layers differently: pip install 'transformers~={last}.0'"
    )


def _kernels(facts: Facts) -> Iterator[str]:
    if facts.has("flash-attn") and not facts.gpus:
        yield "flash-attn is installed and there is no GPU: sdpa will be used"
    old = [gpu.name for gpu in facts.gpus if gpu.capability < AMPERE]
    if facts.has("flash-attn") and old:
        yield f"flash-attn needs an Ampere GPU or newer, not {old[0]}: set model.attn_implementation: sdpa"
    if facts.has("liger-kernel") and not facts.gpus:
        yield "liger-kernel is installed and there is no GPU: leave train.liger off"


def _device(facts: Facts) -> Iterator[str]:
    if facts.cuda is not None and not facts.gpus:
        yield (
            f"torch is a build for CUDA {facts.cuda} and no GPU is seen: look at nvidia-smi, the driver and "
            "CUDA_VISIBLE_DEVICES; on purpose on a CPU, the CPU build is gigabytes smaller"
        )
    if facts.cuda is None and facts.nvcc:
        yield "there is a CUDA compiler and torch is a CPU build: install torch for CUDA to train on the GPU"
    if any(not gpu.bf16 for gpu in facts.gpus):
        yield "a GPU here has no bfloat16: set train.precision: fp16"
    if facts.gpus and facts.nvcc is None:
        yield "nvcc is missing: DeepSpeed cannot build its optimizers, so train.offload_optimizer fails"


def _ranks(facts: Facts) -> Iterator[str]:
    threads = facts.variables.get("OMP_NUM_THREADS")
    if not facts.gpus and facts.cores > 1 and threads is None:
        yield "OMP_NUM_THREADS is not set: ranks on one CPU fight for its cores; export OMP_NUM_THREADS=1"
    if facts.shared_memory_gib is not None and facts.shared_memory_gib < SMALL_SHARED_MEMORY:
        yield (
            f"/dev/shm has {facts.shared_memory_gib} GiB: loader workers may die with a bus error; start the "
            "container with --shm-size=8g, or set data.workers: 0"
        )


def _before(facts: Facts, package: str, least: tuple[int, int]) -> bool:
    version = facts.versions.get(package)
    return version is not None and _numbers(version) < least


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _old(facts: Facts, package: str, least: str, why: str) -> str:
    return f"{package} {facts.versions[package]} is older than {least}: {why}; pip install '{package}>={least}'"


def _build(facts: Facts, package: str) -> str:
    """The local part of a version: +cu128, +cpu, or nothing."""
    return str(facts.versions[package]).partition("+")[2]
