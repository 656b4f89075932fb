"""A model of some shape on the device, and the batches that it is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers as hf
from torch import Tensor

from ..config import Lora, Part, Parts
from ..hooks import attach
from ..models.structure import find_parts
from ..reduction import DART
from ..training.trainable import choose_parameters
from .batches import Inputs, inputs_of
from .shapes import IMAGE, Shape
from .ways import LAYER

Mode = Literal["lora", "full"]
RANK = 128  # of the adapters at full size


@dataclass(frozen=True)
class Subject:
    """batch: on the device; host: the same where it was made; few: with the smaller picture, both ways."""

    shape: Shape
    model: Any
    host: Inputs
    batch: Inputs
    few_host: Inputs
    few: Inputs
    kept: Tensor  # [B, L] bool: what DART keeps of the batch, text included

    @property
    def length(self) -> int:
        return int(self.host["input_ids"].shape[1])

    @property
    def short(self) -> int:
        """Tokens of a row behind the reduction."""
        return self.length - self.shape.tokens + self.shape.kept

    @property
    def depth(self) -> int:
        return len(find_parts(self.model).layers)

    @property
    def true_share(self) -> float:
        """Of the places in all layers: those before the reduction full, the others short. What caches and
        activations can shrink to."""
        return (LAYER * self.length + (self.depth - LAYER) * self.short) / (self.depth * self.length)

    def given(self, few: bool) -> tuple[Inputs, Inputs]:
        """(on the device, on the host)."""
        return (self.few, self.few_host) if few else (self.batch, self.host)


def subject_of(
    shape: Shape,
    scale: float,
    rows: int,
    device: torch.device,
    dtype: torch.dtype,
    mode: Mode | None = None,
    answer: int = 0,
    checkpointing: bool = False,
) -> Subject:
    """mode: what trains, as in the recipes (the tower frozen, the projector whole); None: nothing."""
    model = build(shape, scale, device, dtype)
    if mode is not None:
        model = choose_parameters(model, parts_of(mode, scale)).to(dtype).train()
        if checkpointing:
            find_parts(model).top.gradient_checkpointing_enable({"use_reentrant": False})
    config = find_parts(model).top.config
    host, few = (inputs_of(config, shape, rows, answer, few) for few in (False, True))
    batch, few_batch = _to(host, device, dtype), _to(few, device, dtype)
    kept = _kept(model, shape, batch)
    return Subject(shape, model, host, batch, few, few_batch, kept)


def build(shape: Shape, scale: float, device: torch.device, dtype: torch.dtype) -> Any:
    config = shape.config(scale)
    kind = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return kind._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def parts_of(mode: Mode, scale: float) -> Parts:
    rank = max(4, round(RANK * scale))
    lora = Lora(rank=rank, alpha=2.0 * rank, dropout=0.0)
    return Parts(vision=Part(mode="frozen"), projector=Part(mode="full"), language=Part(mode=mode), lora=lora)


@torch.no_grad()
def _kept(model: Any, shape: Shape, batch: Inputs) -> Tensor:
    asked = {} if "labels" in batch else {"logits_to_keep": 1}
    with attach(model, DART(keep=shape.kept, layer=LAYER), output="compact") as attached:
        model(**batch, **asked, use_cache=False)
    assert attached.last is not None
    return attached.last.mask


def _to(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    return {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in inputs.items()}


def visual(ids: Tensor) -> int:
    """Visual tokens of a row."""
    return int((ids[0] == IMAGE).sum())
