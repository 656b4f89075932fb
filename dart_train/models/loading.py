"""Configurations and weights of models, and the attention implementation that they run with."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..common.hub import cached_first
from .peft_compat import apply_adapter
from .processors import warn_remote_code
from .quantization import release_files

_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_INDEX = "model.safetensors.index.json"
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class WeightsSource:
    """What `from_pretrained` is given. adapter: the one to put on the model, a folder or a hub id."""

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: Path | str | None = None


def attention_kernel(requested: str, place: str = "attn_implementation") -> str:
    """`requested`, or for auto the fastest that the machine has. Raises ValueError for one that is missing, before any
    weight is read. place: the option or recipe key that requested it."""
    if requested == "auto":
        flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
        return "flash_attention_2" if flash else "sdpa"
    package = _FLASH_PACKAGES.get(requested)
    if package is None:
        return requested
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"{place}: {requested} needs the package {package}, which is not installed; install it, or "
            "choose sdpa (which contains PyTorch's own flash kernel) or auto"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"{place}: {requested} needs a GPU; choose sdpa")
    return requested


def choose_device(requested: str | torch.device | None = None) -> torch.device:
    """`requested`, or the GPU if there is one. Raises ValueError for a device that this machine does not have."""
    try:
        device = torch.device(requested or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device: {requested!r} given, expected cpu, cuda or cuda:NUMBER ({first})") from error
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= number:
        found = f"{number} GPUs" if number else "no GPU that PyTorch can use"
        raise ValueError(f"device: {requested} given, but this machine has {found}; leave it out, or choose cpu")
    return device


def read_config(path: str, revision: str | None = None, trust_remote_code: bool = False, place: str = "model") -> Any:
    """place: the option or recipe key that the path was given with."""
    if trust_remote_code:
        warn_remote_code(path)
    try:
        return cached_first(
            lambda: AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code), path
        )
    except (OSError, ValueError) as error:
        remedy = "give a folder with config.json and weights, or a hub id that this machine can reach"
        if "trust_remote_code=True" in str(error):
            remedy = "read that code and, if you trust it, set trust_remote_code: true"
        first = str(error).strip().splitlines()[0]
        if path.count("/") != 1 and not Path(path).is_dir():  # no hub id; the hub's own message would mislead
            first = "there is no such folder"
        raise ValueError(f"{place}: cannot read a model from {path!r} ({first}); {remedy}") from error


def build_meta_model(source: WeightsSource, place: str = "model") -> Any:
    """The model on the meta device, without weights: enough to check whether it can be reduced."""
    config = read_config(source.path, source.revision, source.trust_remote_code, place)
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"{config.model_type} is not a vision-language model that transformers knows ({error})"
        ) from error


def missing_weights(folder: Path) -> str | None:
    """Which weight files are missing in a local folder, or None."""
    index = folder / _INDEX
    if not index.is_file():
        found = any((folder / name).is_file() for name in _WEIGHT_FILES)
        return None if found else "weights are missing: no model.safetensors"
    try:
        needed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        return f"{_INDEX} cannot be read ({error})"
    missing = [name for name in needed if not (folder / name).is_file()]
    return f"weights are missing: {', '.join(missing[:3])}" if missing else None


def read_model(
    source: WeightsSource, dtype: torch.dtype | str, kernel: str, merge: bool = True, quantization: Any = None
) -> Any:
    """The model in eval mode, on the CPU; a quantized one is on the device that it was quantized on. merge: an adapter
    is merged into the weights, instead of left inside PEFT. quantization: as `from_pretrained` takes it."""
    quantized = {} if quantization is None else {"quantization_config": quantization}
    model = cached_first(
        lambda: AutoModelForImageTextToText.from_pretrained(
            source.path,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=dtype,
            attn_implementation=kernel,
            **quantized,
        ),
        source.path,
    )
    if quantization is not None:
        release_files(model)
    if source.adapter is not None:
        model = apply_adapter(model, str(source.adapter), merge)
    return model.eval()
