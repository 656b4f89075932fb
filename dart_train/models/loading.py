"""An adapter put on its base model, or made part of its weights."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from .processors import warn_remote_code

# Which attention kernel a model gets; one that is asked for and missing is told before any weight is read.

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def attention_kernel(asked: str, place: str = "attn_implementation") -> str:
    """`asked`, or for auto the fastest that the machine has. place: where it was asked for, as the user knows it."""
    if asked == "auto":
        flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
        return "flash_attention_2" if flash else "sdpa"
    package = _PACKAGES.get(asked)
    if package is None:
        return asked
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{place}: {asked} needs the package {package}, which is not installed; install it, or "
            "choose sdpa (PyTorch's own flash kernel is inside it) or auto"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"{place}: {asked} needs a GPU; choose sdpa")
    return asked


# Configurations and weights, whole or an adapter over its base model.

_REMEDY = "give a folder with config.json and weights, or a hub id that this machine can reach"
_INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """What `from_pretrained` is given; `adapter`: the one to put on it."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: Path | str | None = None


def read_config(path: str, revision: str | None = None, trust_remote_code: bool = False, place: str = "model") -> Any:
    """place: where the path was written, as the user knows it."""
    if trust_remote_code:
        warn_remote_code(path)
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first, remedy = str(error).strip().splitlines()[0], _REMEDY
        if "trust_remote_code=True" in str(error):
            remedy = "look at that code and, if you trust it, say trust_remote_code: true"
        raise ValueError(f"{place}: {path!r} holds no model that can be read ({first}); {remedy}") from error


def build_meta_model(config: Any) -> Any:
    """The model without weights: enough to know whether it can be reduced."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise ValueError(f"{config.model_type}: no vision-language model that transformers knows ({error})") from error


def missing_weights(folder: Path) -> str | None:
    """What of the weights is not in a local folder, or None."""
    index = folder / _INDEX
    if index.is_file():
        try:
            wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            return f"{_INDEX} cannot be read ({error})"
        absent = [name for name in wanted if not (folder / name).is_file()]
        return f"weights are missing: {', '.join(absent[:3])}" if absent else None
    return None if any((folder / name).is_file() for name in _SINGLE) else "weights are missing: no model.safetensors"


def read_model(source: Source, dtype: torch.dtype | str, kernel: str, merge: bool = True) -> Any:
    """In eval mode, on the CPU. merge: an adapter's weights become the model's own, else it stays inside PEFT."""
    model = AutoModelForImageTextToText.from_pretrained(
        source.path,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        dtype=dtype,
        attn_implementation=kernel,
    )
    if source.adapter is None:
        return model.eval()

    return apply_adapter(model, str(source.adapter), merge).eval()


def apply_adapter(model: Any, adapter: str, merge: bool) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of libraries about each other
        adapted = PeftModel.from_pretrained(model, adapter)
    return merged(adapted) if merge else adapted


@torch.no_grad()
def merged(adapted: Any) -> Any:
    """The plain model with the adapter in its weights. Each merged weight is held against the exact sum, so that
    nothing more than its dtype's rounding comes between them."""
    from peft.tuners.lora import LoraLayer

    wrong = []
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            wrong += [name] * (not _merge(layer))
    if wrong:
        raise RuntimeError(f"the adapter could not be merged within its dtype's rounding at {', '.join(wrong[:3])}")
    return adapted.base_model.unload()


def _merge(layer: Any) -> bool:
    exact = _sum(layer)
    layer.merge(safe_merge=False)
    weight: Tensor = layer.get_base_layer().weight
    return exact is None or bool(((weight.float() - exact).abs() <= _rounding(exact, weight.dtype)).all())


def _sum(layer: Any) -> Tensor | None:
    """Base and low-rank update in float32; None for variants whose update is no plain sum."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if any(name in layer.lora_variant for name in active) or not active:
        return None
    exact = layer.get_base_layer().weight.float().clone()
    for name in active:
        delta = layer.lora_B[name].weight.float() @ layer.lora_A[name].weight.float() * layer.scaling[name]
        exact += delta.T if layer.fan_in_fan_out else delta
    return exact


def _rounding(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """What a number may move by when it is rounded, and float32 sums on the way."""
    facts = torch.finfo(dtype)
    return exact.abs() * (facts.eps + 1e-5) + 1e-6 * exact.abs().max() + facts.tiny
