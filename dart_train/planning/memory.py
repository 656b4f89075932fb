"""Bytes of a rank: what lies there all the time, and what a forward leaves for its backward."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..profiling.flops import FakeLayer
from .setup import Setup
from .work import Work

_FLOAT = 4


def standing(model: nn.Module, setup: Setup) -> dict[str, int]:
    """Weights, gradients and AdamW's state of `model`; shapes and dtypes suffice.

    Weights that train but never get a gradient (the tower's last layer, where an earlier one is taken) count as well.
    AdamW keeps two moments and a counter for each weight tensor, DeepSpeed in float32 and with a float32 copy of
    weights in half precision. ZeRO spreads the optimizer over the ranks (1), the gradients too (2), the weights too
    (3). What is offloaded is on the host, not here.
    """
    train, weights = setup.recipe.train, list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    shared = [setup.ranks if setup.deepspeed and train.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    return {
        "weights": 0 if train.offload_parameters else sum(map(_bytes, weights)) // shared[2],
        "gradients": sum(map(_bytes, trained)) // shared[1],
        "optimizer": 0 if train.offload_optimizer else sum(_state(w, setup) for w in trained) // shared[0],
    }


def _bytes(weight: Any) -> int:
    return int(weight.numel() * weight.element_size())


def _state(weight: Any, setup: Setup) -> int:
    if not setup.deepspeed:
        return 2 * _bytes(weight) + _FLOAT
    copy = weight.element_size() < _FLOAT
    return int(weight.numel()) * _FLOAT * (2 + copy) + _FLOAT


def passing(work: Work, ghost: FakeLayer, setup: Setup, vocabulary: int, tower: float) -> dict[str, int]:
    """Activations of the decoder, of what is before it (`tower` bytes of a visual token), and logits, in the
    micro-batch with the most tokens.

    Without checkpointing every layer keeps what autograd saves. With it, a layer keeps its input, and one layer at
    a time is computed again. Logits: as computed, as logarithms in float32, and their gradient.
    """
    at, recipe = work.longest, setup.recipe
    rows, padded, width = int(work.rows[at]), work.padded(at), setup.dtype.itemsize
    stages = [(layers, int(lengths[at])) for layers, lengths in work.stages]
    saved = [ghost.saved_bytes(rows, length, padded) for _, length in stages]
    if recipe.train.gradient_checkpointing:
        places = sum(layers * rows * length for layers, length in stages)
        activations = places * ghost.text.config.hidden_size * width + max(saved)
    else:
        activations = sum(layers * size for (layers, _), size in zip(stages, saved, strict=True))
    models = 2 if recipe.distill.enabled else 1
    return {
        "decoder activations": activations,
        "tower activations": round(float(work.pixels[at]) * tower),
        "logits": int(work.learnt[at]) * vocabulary * (width + 2 * _FLOAT) * models,
    }
