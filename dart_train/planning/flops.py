"""The arithmetic of a training step, counted: what bounds any speed-up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..training.trainable import PartName, part_of
from .ghost import layer_flops
from .quadratic import Quadratic
from .rates import Rates
from .setup import Setup

_PRODUCT = 2  # FLOPs of a weight and a token: multiply, add
_PASSES = {"frozen": 1, "lora": 2, "full": 3}  # forward; gradient of the input; gradient of the weight
_PRODUCTS = (nn.Linear, nn.Conv2d, nn.Conv3d)


def flop_rates(model: Any, config: Any, setup: Setup, patches: float) -> Rates:
    """model: the whole one, without weights. patches: that the tower reads for each visual token. The attention
    within the tower is not counted, nor is the choice of tokens, which is little beside a layer."""
    recipe = setup.recipe
    modes = {name: part.mode for name, part in recipe.parts.named().items()}
    forward, backward = layer_flops(config, setup)
    sizes = tower_weights(model)
    seen = {"vision": sizes["vision"] * patches, "projector": float(sizes["projector"])}
    again = recipe.train.gradient_checkpointing and modes["vision"] != "frozen"
    passes = {part: _PASSES[modes[part]] for part in seen}
    if modes["vision"] != "frozen":
        passes["projector"] = max(2, passes["projector"])
    head = config.get_text_config().hidden_size * config.get_text_config().vocab_size * _PRODUCT
    return Rates(
        layer=forward + backward + (forward if recipe.train.gradient_checkpointing else Quadratic()),
        forward=forward,
        head=Quadratic(token=float(head * (3 if modes["language"] == "full" else 2))),
        tower=_PRODUCT * sum(weights * (passes[part] + again) for part, weights in seen.items()),
    )


def tower_weights(model: Any) -> dict[PartName, int]:
    """Weights that are multiplied with, in all that stands before the decoder."""
    belongs = part_of(model)
    found: dict[PartName, int] = {"vision": 0, "projector": 0, "language": 0}
    for name, module in model.named_modules():
        if isinstance(module, _PRODUCTS) and ".original_module" not in name:  # PEFT's copy of what trains whole
            found[belongs(name)] += module.weight.numel()
    return found


def patches_in(pixels: torch.Tensor, config: Any) -> int:
    """How many patches of the vision tower lie in what a processor made of pictures."""
    vision = config.vision_config
    size = vision.patch_size if isinstance(vision.patch_size, list | tuple) else [vision.patch_size] * 2
    channels = getattr(vision, "num_channels", None) or getattr(vision, "in_channels", 3)
    return pixels.numel() // (channels * size[0] * size[1] * getattr(vision, "temporal_patch_size", 1))
