"""Packages that only some recipes need, and that an installation may lack."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from ..config import Recipe

_TORCHAO = ("adamw_torch_8bit", "adamw_torch_4bit")
_OTHERS = {"grokadamw": "grokadamw", "stable_adamw": "optimi"}
_NAMES_ON_PYPI = {"liger_kernel": "liger-kernel", "optimi": "torch-optimi"}


def find_missing_packages(recipe: Recipe) -> list[str]:
    """A sentence for each key whose package is not installed."""
    return [
        f"{key} needs the package {_NAMES_ON_PYPI.get(package, package)}, which is not installed; install it, or set "
        f"{remedy}"
        for key, package, remedy in _needed(recipe)
        if find_spec(package) is None
    ]


def _needed(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(key with its value, package, what to set to go without it)."""
    if recipe.train.method != "sft":
        yield f"train.method: {recipe.train.method}", "trl", "train.method: sft"
    if recipe.train.liger:
        yield "train.liger: true", "liger_kernel", "train.liger: false"
    if recipe.model.quantization != "none":
        yield f"model.quantization: {recipe.model.quantization}", "bitsandbytes", "model.quantization: none"
    package = package_of_optimizer(recipe.train.optimizer)
    if package is not None:
        yield f"train.optimizer: {recipe.train.optimizer}", package, "train.optimizer: adamw_torch_fused"


def package_of_optimizer(name: str) -> str | None:
    """None: PyTorch and transformers have it."""
    if name in _TORCHAO:
        return "torchao"
    if any(word in name for word in ("8bit", "32bit", "bnb", "lion", "ademamix", "paged")):
        return "bitsandbytes"
    return _OTHERS.get(name)
