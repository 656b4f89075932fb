"""Recipes: YAML files read into typed, frozen sections, with all issues reported at once."""

from ..reduction.schedule import Distill, Elastic, Fixed, Progressive, Schedule
from .errors import ConfigIssue, RecipeError
from .load import check_recipe, load_recipe, read_recipe, read_text
from .schema import (
    Compare,
    Data,
    Log,
    Lora,
    Model,
    Part,
    Parts,
    QuestionSet,
    Recipe,
    ReductionConfig,
    SourceConfig,
    Train,
    VideoConfig,
)

__all__ = [
    "Compare",
    "ConfigIssue",
    "Data",
    "Distill",
    "Elastic",
    "Fixed",
    "Log",
    "Lora",
    "Model",
    "Part",
    "Parts",
    "Progressive",
    "QuestionSet",
    "Recipe",
    "RecipeError",
    "ReductionConfig",
    "Schedule",
    "SourceConfig",
    "Train",
    "VideoConfig",
    "check_recipe",
    "load_recipe",
    "read_recipe",
    "read_text",
]
