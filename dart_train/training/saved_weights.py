"""The state of a run that was trained without DeepSpeed and FSDP2: its weights are in the files that `export` reads,
those that train in float32, under other names than in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers.integrations import deepspeed as deepspeed_of_transformers
from transformers.trainer import OPTIMIZER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from ..checkpoints.scorer_file import SCORER_FILE
from ..models.peft_compat import names_in_file
from ..models.structure import SCORERS
from .complete_state import CompleteState, Layout, from_indexed

_ADAPTER = f"adapter_{SAFE_WEIGHTS_NAME}"


def read_saved(checkpoint: Path, layout: Layout, model: Any) -> CompleteState:
    """model: of the run that continues, ready to start; its weights are not read. Raises ValueError."""
    found = _adapter_weights(checkpoint, model) if hasattr(model, "peft_config") else _all_weights(checkpoint, model)
    if (checkpoint / SCORER_FILE).is_file():
        scorers = load_file(checkpoint / SCORER_FILE)
        names = [name for group in layout for name in group if f"{SCORERS}." in name]
        found |= {name: scorers[name.split(f"{SCORERS}.", 1)[1]] for name in names}
    optimizer = torch.load(checkpoint / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
    return from_indexed(found, optimizer, layout)


def _adapter_weights(checkpoint: Path, model: Any) -> dict[str, Tensor]:
    tensors = load_file(checkpoint / _ADAPTER)
    return {name: tensors[saved] for name, saved in names_in_file(model).items() if saved in tensors}


def _all_weights(checkpoint: Path, model: Any) -> dict[str, Tensor]:
    """Read by the class that wrote them."""
    kind: Any = next(each for each in type(model).__mro__ if not issubclass(each, FSDPModule))
    with _not_partitioned():
        saved = kind.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False)
    return {name: parameter.detach() for name, parameter in saved.named_parameters()}


@contextmanager
def _not_partitioned() -> Iterator[None]:
    """Under ZeRO-3 `from_pretrained` would partition a model, which every rank must do; here one reads it. Private in
    transformers 5.24: the reference that it finds the configuration of DeepSpeed by."""
    place: Any = deepspeed_of_transformers
    before, place._hf_deepspeed_config_weak_ref = place._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        place._hf_deepspeed_config_weak_ref = before
