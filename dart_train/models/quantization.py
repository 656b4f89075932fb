"""A frozen language model with its linear layers in 4 or 8 bit, on which adapters are trained (QLoRA)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from .structure import part_of, unwrap_model


def make_quantization(kind: str, dtype: torch.dtype, keep_precise: Collection[str]) -> BitsAndBytesConfig:
    """kind: nf4, fp4 or int8. dtype: of the computation. keep_precise: names of modules that are not quantized."""
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(keep_precise))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(keep_precise),
    )


def modules_kept_precise(model: Any, trained: Collection[str] = ()) -> list[str]:
    """Linear layers outside the language model, its head, and modules that are trained themselves. model: on any
    device, the meta device included. trained: the ends of their names."""
    belongs, head = part_of(model), unwrap_model(model).get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and (belongs(name) != "language" or module is head or any(f".{name}".endswith(f".{end}") for end in trained))
    ]


def release_files(model: Any) -> None:
    """On a CPU, weights that were not quantized are parts of mapped files; each keeps a whole file in memory, with the
    weights in it that were quantized. This copies them."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()


def is_linear(module: nn.Module) -> bool:
    """A plain linear layer, or one of bitsandbytes. Not the output projection inside nn.MultiheadAttention, a subclass
    that is never called as a module."""
    return type(module) is nn.Linear or (
        isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes.")
    )
