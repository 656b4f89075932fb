"""Which process this is among those of the run, and how they come together."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..config import Train


@dataclass(frozen=True)
class RankInfo:
    """Read from the environment that `deepspeed`, `torchrun` or nobody has set."""

    rank: int
    world: int
    local_world: int
    torchrun: bool

    @classmethod
    def read(cls) -> RankInfo:
        number = {name: int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1))}
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or number["WORLD_SIZE"]
        return cls(number["RANK"], number["WORLD_SIZE"], int(local), "TORCHELASTIC_RUN_ID" in os.environ)

    @property
    def launched(self) -> bool:
        return "RANK" in os.environ and "WORLD_SIZE" in os.environ

    def uses_deepspeed(self, train: Train) -> bool:
        """A lone process has nobody to share with, and stage 0 under torchrun is plain DDP."""
        if train.deepspeed or train.offload_optimizer or train.offload_parameters:
            return True
        return self.launched and not (self.torchrun and train.zero_stage == 0)

    def problems(self, train: Train) -> list[str]:
        """What this machine cannot do of what is asked."""
        found = []
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if devices and self.local_world > devices:
            found.append(
                f"{self.local_world} processes were started on this machine, which has {devices} GPUs; "
                f"start {devices} (deepspeed --num_gpus {devices} ...), or hide the GPUs to train on the CPU"
            )
        if not devices and train.precision == "fp16":
            found.append("train.precision: fp16 needs a GPU; here choose bf16 or fp32")
        return found

    def meet(self, train: Train) -> bool:
        """Makes the process group, with the timeout that the recipe states: the default would wait far longer.
        Everything after it, TrainingArguments included, uses this group. Whether it was made here."""
        deepspeed = self.uses_deepspeed(train)
        if dist.is_initialized() or (not deepspeed and self.world == 1):
            return False
        if not self.launched:
            os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(_free_port()))
        timeout, cuda = timedelta(seconds=train.timeout_seconds), torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "nccl" if cuda else "gloo"
        if deepspeed:
            import deepspeed as ds

            _without_shared_memory(ds)
            ds.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timeout, verbose=False)
        else:
            dist.init_process_group(backend, timeout=timeout)
        return True


def _without_shared_memory(deepspeed: Any) -> None:
    """On CPUs DeepSpeed compiles an operator that reduces through shared memory. Inference alone calls it; training
    would pay half a minute, a C++ compiler, and 66 MiB a rank of files that no end of a run removes."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def part() -> None:
    """After the run: nobody waits for a process that is gone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
