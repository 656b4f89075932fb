"""Combinations that cannot work. Each rule looks at the entire recipe, and its issues name the remedy.

The rules of each section have a file: `model_rules.py` and so on.
"""

from __future__ import annotations

from collections.abc import Iterator

from .compare_rules import check_compare, check_compared_methods
from .data_rules import check_data, check_packing
from .errors import ConfigIssue
from .hf_arguments import find_hf_errors
from .model_rules import check_model, check_parts, check_quantization
from .reduction_rules import check_distill, check_reduction, check_scorer, check_stages, check_teacher_stage
from .schema import Recipe
from .train_rules import check_backend, check_log, check_optimizer, check_preference, check_ranks, check_steps

# In the order of their issues.
RULES = (
    check_preference,
    check_model,
    check_reduction,
    check_scorer,
    check_parts,
    check_quantization,
    check_data,
    check_packing,
    check_distill,
    check_steps,
    check_optimizer,
    check_backend,
    check_ranks,
    check_log,
    check_compare,
)


def find_conflicts(recipe: Recipe) -> Iterator[ConfigIssue]:
    """All combinations that cannot work, without importing torch."""
    for rule in RULES:
        yield from rule(recipe)


def find_method_errors(recipe: Recipe) -> Iterator[ConfigIssue]:
    """What the reducers report about methods and their options. Imports torch."""
    yield from check_stages(recipe)
    yield from find_hf_errors(recipe.train.hf)
    yield from check_teacher_stage(recipe)
    yield from check_compared_methods(recipe)
