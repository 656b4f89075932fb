"""Optimizer groups: a learning rate for each part, weight decay for matrices only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..recipe import Recipe
from .parts import part_of


def parameter_groups(model: Any, recipe: Recipe, decayed: Collection[str]) -> list[dict[str, Any]]:
    """decayed: names of the parameters that weight decay is for. No group is empty: DeepSpeed takes none."""
    belongs, groups = part_of(model), dict[tuple[str, bool], dict[str, Any]]()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, decays = belongs(name), name in decayed
        group = groups.setdefault((part, decays), _group(recipe, part, decays))
        group["params"].append(parameter)
    return list(groups.values())


def _group(recipe: Recipe, part: str, decays: bool) -> dict[str, Any]:
    rate = recipe.parts.named()[part].learning_rate or recipe.train.learning_rate
    return {"params": [], "lr": rate, "weight_decay": recipe.train.weight_decay if decays else 0.0, "part": part}


def learning_rates(optimizer: Any) -> dict[str, float]:
    """Part -> its present learning rate."""
    return {group["part"]: float(group["lr"]) for group in optimizer.param_groups if "part" in group}
