"""Configurations and weights, whole or an adapter over its base model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from ..processors import say_that_code_runs

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
        say_that_code_runs(path)
    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        first, remedy = str(error).strip().splitlines()[0], _REMEDY
        if "trust_remote_code=True" in str(error):
            remedy = "look at that code and, if you trust it, say trust_remote_code: true"
        raise ValueError(f"{place}: {path!r} holds no model that can be read ({first}); {remedy}") from error


def bones(config: Any) -> Any:
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
    from .adapters import put_on

    return put_on(model, str(source.adapter), merge).eval()
