"""Versions, devices and known bad combinations: what `env` prints and what runs record. No names of people or hosts."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

PACKAGES = (
    "dart-train", "torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "datasets", "safetensors",
    "pillow", "numpy", "torchvision", "flash-attn", "liger-kernel", "wandb", "tensorboard", "trl", "lmms-eval",
)  # fmt: skip
# Those that training results depend on: recorded with every run and export.
RECORDED_PACKAGES = (
    "dart-train", "torch", "transformers", "peft", "accelerate", "deepspeed", "datasets", "safetensors",
)  # fmt: skip
# Only those that change what a run does; never all variables, some of which are keys.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "WANDB_MODE", "NCCL_DEBUG", "NCCL_SOCKET_IFNAME",
    "DS_ACCELERATOR", "DS_BUILD_OPS", "TOKENIZERS_PARALLELISM", "PYTORCH_CUDA_ALLOC_CONF",
)  # fmt: skip
# Releases of transformers on which the tests passed: the first and the last minor release, and those between.
TESTED_TRANSFORMERS = ((5, 23), (5, 24))
AMPERE = (8, 0)  # CUDA capability
SMALL_SHARED_MEMORY = 1.0  # GiB; containers come with 64 MiB, and loader workers pass batches through it


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float
    capability: tuple[int, int]
    bf16: bool


@dataclass(frozen=True)
class Environment:
    python: str
    system: str
    cores: int
    cpu_bf16: bool  # whether the CPU has instructions for bfloat16
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


def read_environment() -> Environment:
    import torch

    try:
        shared_memory = round(shutil.disk_usage("/dev/shm").total / 2**30, 2)
    except OSError:
        shared_memory = None
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu_bf16=cpu_has_bf16(),
        versions={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        gpus=_gpus(),
        nvcc=shutil.which("nvcc"),
        shared_memory_gib=shared_memory,
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def cpu_has_bf16() -> bool:
    """Whether bfloat16 is computed by the CPU's own instructions; emulated, it is several times slower than float32."""
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def bf16_is_emulated() -> bool:
    """Whether models run on a CPU that has no bfloat16."""
    import torch

    return not torch.cuda.is_available() and not cpu_has_bf16()


def versions() -> dict[str, str]:
    """Python and the recorded packages; `not installed` for a missing one."""
    packages = {name: _version(name) or "not installed" for name in RECORDED_PACKAGES}
    return {"python": platform.python_version(), **packages}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(
        Gpu(
            each.name, round(each.total_memory / 2**30, 1), (each.major, each.minor), (each.major, each.minor) >= AMPERE
        )
        for each in found
    )


def warnings_for(found: Environment) -> list[str]:
    """Combinations that are known to fail, or to be slower than necessary, each with what to do."""
    return [*_version_warnings(found), *_kernel_warnings(found), *_device_warnings(found), *_rank_warnings(found)]


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


def _version_warnings(found: Environment) -> Iterator[str]:
    if found.has("transformers") and (note := version_note(found.versions["transformers"])):
        yield note
    for package, oldest in (("deepspeed", (0, 19)), ("peft", (0, 21))):
        version = found.versions.get(package)
        if version is not None and _numbers(version) < oldest:
            least = ".".join(map(str, oldest))
            yield (
                f"{package} {version} is older than {least} and does not support transformers 5; "
                f"pip install '{package}>={least}'"
            )
    if found.has("torchvision") and _build(found, "torch") != _build(found, "torchvision"):
        yield (
            f"torch {found.versions['torch']} and torchvision {found.versions['torchvision']} are builds for different "
            "devices: importing torchvision fails; install both from one index, or uninstall torchvision (images "
            "are then prepared with Pillow)"
        )


def _kernel_warnings(found: Environment) -> Iterator[str]:
    if found.has("flash-attn") and not found.gpus:
        yield "flash-attn is installed and there is no GPU: sdpa will be used"
    old = [gpu.name for gpu in found.gpus if gpu.capability < AMPERE]
    if found.has("flash-attn") and old:
        yield f"flash-attn needs an Ampere GPU or newer, not {old[0]}: set model.attn_implementation: sdpa"
    if found.has("liger-kernel") and not found.gpus:
        yield "liger-kernel is installed and there is no GPU: leave train.liger off"


def _device_warnings(found: Environment) -> Iterator[str]:
    if found.cuda is not None and not found.gpus:
        yield (
            f"torch is a build for CUDA {found.cuda} and no GPU is visible: check nvidia-smi, the driver and "
            "CUDA_VISIBLE_DEVICES; to train on a CPU, the CPU build is gigabytes smaller"
        )
    if found.cuda is None and found.nvcc:
        yield "there is a CUDA compiler and torch is a CPU build: install torch for CUDA to train on the GPU"
    if not found.gpus and not found.cpu_bf16:
        yield (
            "this CPU emulates bfloat16, several times slower than float32: set train.precision: fp32 to train, and "
            "model.dtype: float32"
        )
    if any(not gpu.bf16 for gpu in found.gpus):
        yield "a GPU here has no bfloat16: set train.precision: fp16"
    if found.gpus and found.nvcc is None:
        yield "nvcc is missing: DeepSpeed cannot build its optimizers, so train.offload_optimizer fails"


def _rank_warnings(found: Environment) -> Iterator[str]:
    if not found.gpus and found.cores > 1 and "OMP_NUM_THREADS" not in found.variables:
        yield "OMP_NUM_THREADS is not set: ranks on one CPU compete for its cores; export OMP_NUM_THREADS=1"
    if found.shared_memory_gib is not None and found.shared_memory_gib < SMALL_SHARED_MEMORY:
        yield (
            f"/dev/shm has {found.shared_memory_gib} GiB: loader workers may die with a bus error; start the "
            "container with --shm-size=8g, or set data.workers: 0"
        )


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)


def _build(found: Environment, package: str) -> str:
    """The local part of a version: +cu128, +cpu, or nothing."""
    return str(found.versions[package]).partition("+")[2]
