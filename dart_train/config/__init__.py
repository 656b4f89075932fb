"""Recipes: YAML into typed, frozen dataclasses, with every mistake told at once."""

from ..reduction.schedule import Distill, Elastic, Fixed, Progressive, Schedule
from .errors import Problem, RecipeError
from .recipe import Recipe, load_recipe, read_recipe
from .reduction import Reduction
from .sections import Data, Log, Lora, Model, Part, Parts, Source
from .verbs import Compare, QuestionSet, Train

__all__ = [
    "Compare",
    "Data",
    "Distill",
    "Elastic",
    "Fixed",
    "Log",
    "Lora",
    "Model",
    "Part",
    "Parts",
    "Problem",
    "Progressive",
    "QuestionSet",
    "Recipe",
    "RecipeError",
    "Reduction",
    "Schedule",
    "Source",
    "Train",
    "load_recipe",
    "read_recipe",
]
