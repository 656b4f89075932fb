"""FSDP2 (`train.backend: fsdp2`): weights, gradients and optimizer state are sharded over the ranks by PyTorch's own
`fully_shard`, and one file of a checkpoint holds the state of all ranks, so that any number of them can continue.

accelerate's FSDP is not used: on CPU ranks its `AcceleratorState` ignores the plugin and trains with DDP (read in
accelerate 1.15.0). Each decoder layer and each block of the vision tower is one unit, gathered before its forward and
its backward, before any hook on it; all other weights, the final norm that selections read included, are one unit that
stays gathered from the beginning of the forward to the end of the backward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..common.distributed import RankInfo
from ..config import Train
from ..models.structure import find_parts
from .complete_state import STATE_FILE

SHARDED = "fsdp2"  # in place of the ZeRO stage, in complete.json
_COMPUTED_IN = {"bf16": torch.bfloat16, "fp32": None}


def uses_fsdp2(train: Train, ranks: RankInfo) -> bool:
    """One process has no one to share with, and trains as with any other backend."""
    return train.backend == "fsdp2" and ranks.world > 1


def is_fully_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def shard_fully(model: Any, train: Train, ranks: RankInfo) -> None:
    """In place, after every hook and adapter is there and before the optimizer is made. Collective. model: equal on all
    ranks, its trained parameters in float32; they are computed in the dtype of `train.precision`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh, computed_in = init_device_mesh(device, (ranks.world,)), _COMPUTED_IN[train.precision]
    for unit in _units(model):
        # Inputs of a layer have the right dtype already, or, as rotary embeddings may have, another on purpose.
        policy = MixedPrecisionPolicy(computed_in, reduce_dtype=torch.float32, cast_forward_inputs=False)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(computed_in, reduce_dtype=torch.float32))
    model._is_accelerate_prepared = True  # accelerate would wrap it in DDP


def _units(model: Any) -> Iterator[nn.Module]:
    """Decoder layers, and the modules that transformers keeps on one device, outermost first."""
    parts = find_parts(model)
    classes = set(getattr(parts.top, "_no_split_modules", None) or ())
    chosen = list(parts.layers)
    inside = {id(module) for layer in chosen for module in layer.modules()}
    yield from chosen
    for module in parts.top.modules():
        if type(module).__name__ in classes and id(module) not in inside and module is not parts.top:
            if any(id(child) in inside for child in module.modules()):
                continue  # the decoder itself
            inside |= {id(child) for child in module.modules()}
            yield module


def full_weights(model: Any, trained_only: bool, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Complete weights and buffers on the CPU, on the first rank; empty on the others. Collective. dtype: of the
    parameters, where it is given."""
    trained = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    found = {}
    for name, tensor in model.state_dict().items():
        if trained_only and name not in trained:
            continue
        sharded, full = isinstance(tensor, DTensor), _full(tensor)
        if full is not None:
            found[name] = full.to(dtype) if dtype is not None and sharded and full.is_floating_point() else full
    return found


def full_state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Trained weights and optimizer state of all ranks, as they are in training (float32), on the first rank.
    Collective."""
    weights = full_weights(model, trained_only=True)
    saved = optimizer.state_dict()
    state = {
        index: {name: _full(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for index, values in saved["state"].items()
    }
    return {"weights": weights, "optimizer": {"state": state, "param_groups": saved["param_groups"]}}


def restore_weights(model: Any, checkpoint: Path) -> None:
    """The trained weights of `full_state`; each rank keeps its shard. Raises ValueError."""
    saved = _read(checkpoint)["weights"]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if lost := sorted(trained.keys() - saved.keys()):
        raise ValueError(f"{checkpoint / STATE_FILE} lacks weights that are trained: {', '.join(lost[:5])}")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(_shard_like(saved[name], parameter))


def restore_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    saved = _read(checkpoint)["optimizer"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {
            name: _shard_like(value, parameters[index]) if _is_shaped_like(value, parameters[index]) else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _full(tensor: Tensor) -> Tensor | None:
    """Collective for a sharded tensor. None on ranks other than the first."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu() if torch.distributed.get_rank() == 0 else None


def _is_shaped_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape


def _shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """value: complete, and the same on every rank."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _read(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
    return found
