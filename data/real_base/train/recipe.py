"""The recipe of the base model of pretrained parts: images, stages, evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dart_train.config.errors import ConfigIssue, RecipeError, unexpected
from dart_train.config.fields import (
    Count,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    Text,
)
from dart_train.config.load import apply_overrides, parse_mapping, read_text
from dart_train.config.schema import plain
from dart_train.config.validation import validate


class ThingImages(Section):
    train: Count = 3000  # scenes whose features are computed once and kept in work_dir
    seed: NotNegativeInt = 0
    size: Count = 224  # in pixels
    feature_layers: list[int] = Field(default=[-8, -5], min_length=1)  # of the vision tower, joined; -1 is the last


class ProjectorStage(Section):
    steps: Count
    batch_size: Count = 16  # images
    learning_rate: Positive = 1e-3
    decay: NotNegativeInt = 0  # the last steps, in which the learning rate falls to 0
    warmup: NotNegativeInt = 20
    position: NotNegative = 0.5  # weight of the place in the target of a patch, relative to the word


class LanguageStage(Section):
    steps: Count
    batch_size: Count = 4  # images
    learning_rate: Positive = 1e-3  # of the adapter
    projector_learning_rate: Positive = 2e-4
    decay: NotNegativeInt = 0
    warmup: NotNegativeInt = 20
    patches: Count = 256  # of each image, drawn at random, those of things and texts first; others are not in the row
    naming: NotNegativeInt = 4  # questions of the kind `what` per image
    others: NotNegativeInt = 6  # questions of other kinds per image


class Stages(Section):
    projector: ProjectorStage  # from features to the words that name what a patch shows
    few: LanguageStage  # projector and adapter, on some of the patches
    all: LanguageStage  # projector and adapter, on all patches


class Adapter(Section):
    rank: Count = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0


class Measure(Section):
    split: Literal["validation", "test"] = "test"
    images: Count = 100  # of each of: seen things, unseen things, seen things in the other style
    each: Count = 2  # questions of each kind per image, at most


class RealRecipe(Section):
    stages: Stages
    pictures: ThingImages = Field(default_factory=ThingImages)
    adapter: Adapter = Field(default_factory=Adapter)
    measure: Measure = Field(default_factory=Measure)
    parts_dir: Text = "runs/real_base/parts"  # the downloaded packages
    work_dir: Text = "runs/real_base/work"  # features, and the state of the stages; a new start resumes from it
    output_dir: Text = "data/real_base/weights"  # projector and adapter
    save_steps: Count = 20
    validation_images: Count = 6  # scenes on which a stage is observed at each save
    precision: Literal["float32", "bfloat16"] = "bfloat16"  # of the frozen weights; trained weights are float32
    seed: NotNegativeInt = 0

    def to_dict(self) -> dict[str, Any]:
        written: dict[str, Any] = plain(self.model_dump())
        return written


def load_real(path: str | Path, overrides: Iterable[str] = ()) -> RealRecipe:
    """The recipe in a YAML file, `overrides` applied. Raises RecipeError with all problems."""
    data = parse_mapping(read_text(path), str(path), "a mapping with sections such as stages and pictures")
    issues = apply_overrides(data, overrides)
    recipe, found = validate(RealRecipe, data)
    issues += found
    if recipe is not None:
        issues += _find_conflicts(recipe)
    if issues or recipe is None:
        raise RecipeError(issues, str(path))
    return recipe


def _find_conflicts(recipe: RealRecipe) -> list[ConfigIssue]:
    found = []
    for name in ("projector", "few", "all"):
        stage = getattr(recipe.stages, name)
        if stage.decay > stage.steps:
            found.append(
                unexpected(f"stages.{name}.decay", stage.decay, f"at most the {stage.steps} steps of the stage")
            )
    for name in ("few", "all"):
        stage = getattr(recipe.stages, name)
        if not stage.naming + stage.others:
            found.append(unexpected(f"stages.{name}.naming", 0, "at least one question per image, with `others`"))
    return found
