"""The recipe of a base model: its architecture, the stages of its training, and its evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from dart_train.config.errors import ConfigIssue, RecipeError, unexpected
from dart_train.config.fields import (
    Count,
    Fraction,
    Keep,
    NotNegative,
    NotNegativeInt,
    Positive,
    Section,
    Several,
    Text,
)
from dart_train.config.load import apply_overrides, parse_mapping, read_text
from dart_train.config.schema import plain
from dart_train.config.validation import validate


class DrawnImages(Section):
    difficulty: Literal["tiny", "small", "medium", "hard"] = "tiny"  # of data/shapes.py; sets the image size
    seed: NotNegativeInt = 0  # of the scenes


class Vision(Section):
    patch: Count = 8  # side in pixels
    width: Count = 96
    layers: Count = 3
    heads: Count = 4
    mlp: Count = 192


class Language(Section):
    width: Count = 128
    layers: Count = 8
    heads: Count = 4
    mlp: Count = 320
    positions: Count = 1024  # the maximum sequence length


class Stage(Section):
    steps: Count
    batch_size: Count  # images
    learning_rate: Positive
    warmup: NotNegativeInt = 50  # steps
    questions: Count = 7  # per image, at most
    conversations: Fraction = (
        0.0  # share of the batches in which questions form a conversation instead of being independent
    )
    background: bool = True  # language: false leaves out empty patches; their positions remain free
    blind_layers: NotNegativeInt = 0  # in the first layers of this number, text does not attend to the image
    weight_decay: NotNegative = 0.01
    max_grad_norm: Positive = 1.0


class Stages(Section):
    vision: Stage  # the vision tower alone, on labels of every patch
    language: Stage  # the language model alone, on symbols in place of patches
    projector: Stage  # from the features of the tower to the symbols, both frozen
    joint: Stage  # all weights, on images

    def named(self) -> dict[str, Stage]:
        return {name: getattr(self, name) for name in type(self).model_fields}


class Measure(Section):
    split: Literal["validation", "test"] = "test"
    questions: Count = 600  # of each kind
    batch_size: Count = 100
    budgets: Several[Keep] = (1.0, 0.5, 0.222, 0.111)
    layer: Count = 2


class BaseRecipe(Section):
    stages: Stages
    pictures: DrawnImages = Field(default_factory=DrawnImages)
    vision: Vision = Field(default_factory=Vision)
    language: Language = Field(default_factory=Language)
    measure: Measure = Field(default_factory=Measure)
    output_dir: Text = "runs/tiny_base/model"  # the finished model
    work_dir: Text = "runs/tiny_base/stages"  # the weights after each stage; a new start resumes from them
    save_steps: Count = 100  # also within a stage
    precision: Literal["float32", "bfloat16"] = "float32"  # of the computation; the weights are float32
    smoothing: Fraction = 0.0  # label smoothing
    seed: NotNegativeInt = 0  # of the weights

    def to_dict(self) -> dict[str, Any]:
        written: dict[str, Any] = plain(self.model_dump())
        return written


def load_base(path: str | Path, overrides: Iterable[str] = ()) -> BaseRecipe:
    """The recipe in a YAML file, `overrides` applied. Raises RecipeError with all problems."""
    data = parse_mapping(read_text(path), str(path), "a mapping with sections such as vision and stages")
    issues = apply_overrides(data, overrides)
    base, found = validate(BaseRecipe, data)
    issues += found
    if base is not None and not issues:
        issues.extend(_find_conflicts(base))
    if issues or base is None:
        raise RecipeError(issues, str(path))
    return base


def _find_conflicts(base: BaseRecipe) -> Iterator[ConfigIssue]:
    for name in ("vision", "language"):
        part = getattr(base, name)
        if part.width % part.heads:
            yield unexpected(f"{name}.heads", part.heads, f"a divisor of {name}.width = {part.width}")
    for name, stage in base.stages.named().items():
        if stage.blind_layers >= base.language.layers:
            wanted = f"fewer than language.layers = {base.language.layers}"
            yield unexpected(f"stages.{name}.blind_layers", stage.blind_layers, wanted)
