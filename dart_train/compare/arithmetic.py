"""FLOPs of a prompt, from its token counts: the speed-up that fewer tokens allow at most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..attach.anatomy import unwrap
from ..plan.flops import flop_rates, patches_in
from ..plan.setup import Setup
from ..recipe import Part, Parts, Recipe

# No adapters, as they are merged; a frozen tower is one that goes forward only.
_WHOLE = Parts(vision=Part("frozen"), projector=Part("frozen"), language=Part("full"))


@dataclass(frozen=True)
class Shape:
    """Of one prefill: rows, the padded length that comes in, visual tokens; steps: of each stage its layer, the first
    to run on that stage's padded length."""

    rows: int
    length: int
    steps: tuple[tuple[int, int], ...]
    visual: int

    def lengths(self, layers: int) -> list[int]:
        """Of every layer."""
        found = [self.length] * layers
        for layer, length in self.steps:
            found[layer:] = [length] * (layers - layer)
        return found


class Arithmetic:
    """Of one model; `batch`: any that has pictures."""

    def __init__(self, recipe: Recipe, model: Any, batch: dict[str, Any], visual: int) -> None:
        plain = unwrap(model)
        recipe = replace(recipe, parts=_WHOLE, train=replace(recipe.train, gradient_checkpointing=False))
        pixels = batch.get("pixel_values")
        patches = patches_in(pixels, plain.config) / visual if isinstance(pixels, torch.Tensor) and visual else 0.0
        self.rates = flop_rates(plain, plain.config, Setup(recipe, 1, False), patches)
        self.text = plain.config.get_text_config()

    def prefill(self, shape: Shape) -> float:
        """Vision tower, decoder layers at the length that each runs on, and one place of the head for each row."""
        lengths = Counter(shape.lengths(self.text.num_hidden_layers))
        cost = sum(n * float(self.rates.forward(shape.rows, length)) for length, n in lengths.items())
        head = 2 * shape.rows * self.text.hidden_size * self.text.vocab_size
        return float(np.asarray(cost + head + self.rates.tower * shape.visual))
