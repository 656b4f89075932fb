"""The weights of a trained scorer, for the method `learned`."""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file

from ..reduction.scorer import TokenScorer
from .image_reduction import Scorer
from .served_reduction import ServedReduction
from .vllm_compat import find_file

SCORER_FILE = "scorer.safetensors"
_PREFIX = "layer_0."


def is_of_scorer(name: str) -> bool:
    """Whether the weight of this name, as vLLM reads it from the files, is a scorer's."""
    return re.match(r"layer_\d+\.", name) is not None


def load_scorer(served: ServedReduction, device: torch.device) -> Scorer:
    """As a function: a submodule would be expected in vLLM's own weights."""
    path = find_file(served.folder, SCORER_FILE, served.revision)
    if path is None:
        raise ValueError(f"{served.folder} has no {SCORER_FILE}, which has the weights of the method 'learned'")
    tensors = load_file(path)
    own = {name.removeprefix(_PREFIX): each for name, each in tensors.items() if name.startswith(_PREFIX)}
    if not own:
        layers = ", ".join(sorted({name.split(".")[0].removeprefix("layer_") for name in tensors}))
        raise ValueError(f"{path} has scorers of layers {layers}; vLLM serves one at layer 0")
    scorer = TokenScorer.from_state(own).eval().requires_grad_(False).to(device)
    return scorer.__call__
