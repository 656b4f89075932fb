"""Which attention kernel a model gets; one that is asked for and missing is told before any weight is read."""

from __future__ import annotations

import importlib.util

import torch

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
