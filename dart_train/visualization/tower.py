"""Which visual tokens show what ran through the vision tower, where a stage in it drops units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hooks import attach
from ..models.prompts import to_device
from ..reduction import KeepAll, TowerDART
from ..reduction.tower import Representatives
from .overlay import Choice, full_choice


@torch.no_grad()
def choose_in_tower(model: Any, inputs: Mapping[str, Any], stage: TowerDART, number: int) -> Choice:
    """What the stage keeps of the `number` visual tokens of these inputs: a token is kept if the tower sees its unit,
    or any of its units where several become one token."""
    training, batch = model.training, to_device(inputs, model)
    model.eval()
    try:
        with attach(model, [stage, KeepAll()]) as attached:
            model(**batch, use_cache=False)
            runs = attached.tower_units
    finally:
        model.train(training)
    if all(run is None for run in runs):
        return full_choice(number)
    if len(runs) > 1:
        raise ValueError(f"the vision tower ran {len(runs)} times, for images and a video: give one of them")
    (run,) = runs
    assert run is not None
    return Choice(tokens_of_units(run, number).tolist())


def tokens_of_units(units: Representatives, number: int) -> Tensor:
    """[number] bool. Units are tokens, or k x k neighbouring patches of an image become one."""
    kept = torch.zeros(len(units.of), dtype=torch.bool)
    kept[units.kept.cpu()] = True
    if len(kept) == number:
        return kept
    images = len(units.counts)
    side, tokens = math.isqrt(len(kept) // images), math.isqrt(number // images)
    if images * side**2 != len(kept) or images * tokens**2 != number or side % tokens:
        raise ValueError(
            f"the vision tower has {len(kept)} units of {images} images or tiles, and the prompt {number} visual "
            "tokens: expected as many, or squares of patches that become one token. Which token shows which unit is "
            "not known where tiles are cut to the image. Leave out --tower"
        )
    ratio = side // tokens
    blocks = kept.numpy().reshape(images, tokens, ratio, tokens, ratio)
    return torch.from_numpy(np.asarray(blocks.any((2, 4)))).flatten()


def title_of(stage: TowerDART) -> str:
    options: Sequence[str] = [f"{name}={value}" for name, value in stage.to_dict().items() if name != "pivots"]
    return " ".join(["vision tower", *options])
