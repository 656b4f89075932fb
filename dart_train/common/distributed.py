"""The processes of a run: which one this is, and the process group they form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .deepspeed_compat import init_deepspeed
from .io import free_port


@dataclass(frozen=True)
class RankInfo:
    """Read from the environment that `deepspeed` or `torchrun` set; without a launcher this is the only process."""

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

    def uses_deepspeed(self, zero_stage: int, required: bool = False) -> bool:
        """Whether these processes train with DeepSpeed. A process without a launcher has no one to share with, and
        stage 0 under torchrun is plain DDP. required: by settings that only DeepSpeed has, such as offloading."""
        return required or (self.launched and not (self.torchrun and zero_stage == 0))

    def problems(self, precision: str) -> list[str]:
        """What this machine does not support. precision: bf16, fp16 or fp32."""
        found = []
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if devices and self.local_world > devices:
            found.append(
                f"{self.local_world} processes were started on this machine, which has {devices} GPUs; "
                f"start {devices} (deepspeed --num_gpus {devices} ...), or hide the GPUs to train on the CPU"
            )
        if not devices and precision == "fp16":
            found.append("train.precision: fp16 needs a GPU; here choose bf16 or fp32")
        return found

    def init_process_group(self, timeout_seconds: float, deepspeed: bool) -> bool:
        """Returns whether a process group was created, for the caller to destroy. One process without DeepSpeed needs
        none. Everything that follows, TrainingArguments included, uses this group and its timeout."""
        if dist.is_initialized() or (not deepspeed and self.world == 1):
            return False
        if not self.launched:
            os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
            os.environ.setdefault("MASTER_PORT", str(free_port()))
        timeout, cuda = timedelta(seconds=timeout_seconds), torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "nccl" if cuda else "gloo"
        try:
            if deepspeed:
                init_deepspeed(backend, timeout)
            else:
                dist.init_process_group(backend, timeout=timeout)
        except RuntimeError as error:
            if "EADDRINUSE" not in str(error) and "address already in use" not in str(error).lower():
                raise
            place = f"{os.environ.get('MASTER_PORT')} of {os.environ.get('MASTER_ADDR')}"
            raise ValueError(
                f"port {place}, where the ranks meet, is in use by another process (another run?); choose another "
                "one: deepspeed --master_port PORT ... (torchrun has the same option)"
            ) from error
        return True


def gather_objects(item: Any) -> list[Any]:
    """What every rank passes, by rank. Collective."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [item]
    items: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items


def is_sharded(parameter: Any) -> bool:
    """Whether FSDP2 holds a part of it on each rank, and has not gathered it for a forward or backward."""
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)


@contextmanager
def kept_gathered(layer: Any) -> Iterator[None]:
    """Around a call of a layer inside one of its own hooks: without it, FSDP2 would free the layer's weights at the
    end of that call, before the outer one has used them."""
    if not hasattr(layer, "set_reshard_after_forward"):
        yield
        return
    layer.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        layer.set_reshard_after_forward(True, recurse=False)


def destroy_process_group() -> None:
    """At the end of a run: the other ranks must not wait for a process that has exited."""
    if dist.is_initialized():
        dist.destroy_process_group()
