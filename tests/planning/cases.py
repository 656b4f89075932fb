"""From a recipe's text to what is planned for it."""

from __future__ import annotations

from typing import Any

import torch

from dart_train.config import Recipe, read_recipe
from dart_train.planning import Plan, predict
from dart_train.planning.predict import PlanInputs

CPU = torch.device("cpu")
FIXED = "reduction={method: dart, keep: 14, layer: 2, schedule: {kind: fixed}}"


def recipe_of(text: str, *overrides: str) -> Recipe:
    return read_recipe(text, overrides, needs=("data.train",))


def inputs_of(text: str, *overrides: str, ranks: int | None = None, rows: int = 40) -> PlanInputs:
    return PlanInputs.of(recipe_of(text, *overrides), ranks, rows, CPU)


def encode(inputs: PlanInputs, numbers: list[int]) -> dict[str, torch.Tensor]:
    return inputs.rows.encode(numbers, inputs.recipe, inputs.setup.dtype, CPU)


def quick(text: str, *overrides: str, **options: Any) -> Plan:
    return predict(recipe_of(text, *overrides), timing=False, device="cpu", rows=40, **options)
